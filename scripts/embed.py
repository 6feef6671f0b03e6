#!/usr/bin/env python3
"""`croplem embed` by several processes: `accelerate launch scripts/embed.py SRC OUT`, or torchrun; options as there.

OUT must lie in a folder that all processes see. Any number of them gives the same table, and goes on with what another
number began.
"""

import sys

from croplem_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
