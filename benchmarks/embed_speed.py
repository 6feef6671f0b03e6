"""How fast samples become embeddings, processing included: `Embedder.encode`, one thread.

    OMP_NUM_THREADS=1 python benchmarks/embed_speed.py --json embed_speed.json

Invented patches with one date of each sensor, float32 radar and uint16 optics as the readers give them, every pixel
valid, and series of 12 dates. Rates are per second of CPU time, medians of interleaved rounds; with bf16 also how far
the embeddings move: the largest difference, and the smallest cosine to float32 after centring.

Keys of the JSON: `patches_per_cpu_s_64_p8` (float32) and so on for 64, 128 and 256 px at patches of 8 and 16;
`points_per_cpu_s_12_dates`; `processing_percent` of the time at 64 px; `bf16` with the same keys.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from croplem_hf import Embedder, make_sample

CASES = [(size, patch) for size in (64, 128, 256) for patch in (8, 16)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="croplem/mae-s1s2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    embedder = Embedder.from_pretrained(args.model, device="cpu")
    cases = {f"patches_per_cpu_s_{size}_p{p}": (patches(32 * 64 // size, size), p) for size, p in CASES}
    cases["points_per_cpu_s_12_dates"] = (points(512), 1)
    rates = {(kind, key): [] for kind in ("float32", "bf16") for key in cases}
    moved = {}
    for turn in range(args.rounds + 1):
        for kind, key in rates:
            samples, p = cases[key]
            begin = time.process_time()
            found = embedder.encode(samples, patch_size=p, dtype="bfloat16" if kind == "bf16" else "float32")
            seconds = time.process_time() - begin
            if turn:  # the first one warms up
                rates[kind, key].append(len(samples) / seconds)
            moved[kind, key] = found
    figures = {key: round(statistics.median(rates["float32", key]), 1) for key in cases}
    samples, _ = cases["patches_per_cpu_s_64_p8"]
    seconds = statistics.median(timed_processing(embedder, samples) for _ in range(args.rounds))
    figures["processing_percent"] = round(100 * seconds / len(samples) * figures["patches_per_cpu_s_64_p8"], 1)
    figures["bf16"] = {key: round(statistics.median(rates["bf16", key]), 1) for key in cases}
    a, b = (moved[kind, "patches_per_cpu_s_64_p8"] for kind in ("float32", "bf16"))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    figures["bf16"] |= {"largest_difference": float(np.abs(a - b).max()), "smallest_cosine": float(cosine.min())}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))


def timed_processing(embedder: Embedder, samples: list) -> float:
    begin = time.process_time()
    embedder.processor(samples)
    return time.process_time() - begin


def patches(count: int, size: int) -> list:
    rng = np.random.default_rng(size)
    return [
        make_sample(
            str(n), s1=rng.normal(-14, 4, (1, 2, size, size)), s1_dates=["2019-05-03"], s2_dates=["2019-05-13"],
            s2=rng.integers(20, 5000, (1, 13, size, size)).astype(np.uint16), s2_level="L1C",
        )
        for n in range(count)
    ]  # fmt: skip


def points(count: int) -> list:
    rng = np.random.default_rng(1)
    dates = [f"2019-{month:02d}-15" for month in range(1, 13)]
    return [
        make_sample(
            str(n), s1=rng.normal(-14, 4, (12, 2, 1, 1)), s1_dates=dates, s2_dates=dates, s2_level="L1C",
            s2=rng.integers(20, 5000, (12, 13, 1, 1)).astype(np.uint16),
        )
        for n in range(count)
    ]  # fmt: skip


if __name__ == "__main__":
    main()
