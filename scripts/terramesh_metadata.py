#!/usr/bin/env python3
"""List the places of a TerraMesh folder in a metadata.csv, each at both levels of optics with its radar.

    python scripts/terramesh_metadata.py data/terramesh

The folder holds `{S1RTC,S2L1C,S2L2A}/<place>.tif`. Their dates are not in the files; the middle of 2021 stands for all.
"""

import argparse
import csv
import os
from pathlib import Path

# A bright place without B10: nothing in the file itself tells that the offset of baseline 04.00 is in it.
KNOWN_OFFSETS = {("S2L2A", "433D_629L_3_1"): "1000"}
DATE = "2021-07-01"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows = []
    for level in ("L1C", "L2A"):
        for path in sorted((folder / f"S2{level}").glob("*.tif")):
            offset = KNOWN_OFFSETS.get((f"S2{level}", path.stem), "auto")
            rows.append((f"{path.stem}_{level}", "s1", DATE, f"S1RTC/{path.name}", "", "gamma0", "auto"))
            rows.append((f"{path.stem}_{level}", "s2", DATE, f"S2{level}/{path.name}", level, "", offset))
    if not rows:
        parser.error(f"{folder}: no S2L1C/*.tif or S2L2A/*.tif in this folder")
    partial = folder / "metadata.csv.tmp"
    with open(partial, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("id", "sensor", "date", "path", "level", "kind", "offset"))
        writer.writerows(rows)
    os.replace(partial, folder / "metadata.csv")


if __name__ == "__main__":
    main()
