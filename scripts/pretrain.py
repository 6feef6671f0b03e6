#!/usr/bin/env python3
"""Pretrain the encoder; start it with `accelerate launch scripts/pretrain.py --config FILE` or torchrun."""

import sys

from croplem_hf.training import main

if __name__ == "__main__":
    sys.exit(main())
