"""How long it takes to start: importing the library and `croplem --help`, beside importing transformers.

    python benchmarks/start_up.py

Best of several processes each, so that what else the machine does counts little; the time of an empty Python is told
too, and is part of all others.
"""

import argparse
import subprocess
import sys
import time

COMMANDS = {
    "python": "pass",
    "import croplem_hf": "import croplem_hf",
    "croplem --help": "from croplem_hf.cli import main; main(['--help'])",
    "import transformers": "import transformers",
    "import torch": "import torch",
}
LIMITS = {"import croplem_hf": 0.3, "croplem --help": 0.5}


def best(code: str, runs: int) -> float:
    """Seconds of the quickest of some processes that run `code`."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="processes of each (default 7)")
    runs = parser.parse_args().runs
    late = []
    for name, code in COMMANDS.items():
        seconds = best(code, runs)
        limit = LIMITS.get(name)
        print(f"{name:22} {seconds:6.3f} s{'' if limit is None else f'   (at most {limit} s)'}")
        if limit is not None and seconds > limit:
            late.append(name)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
