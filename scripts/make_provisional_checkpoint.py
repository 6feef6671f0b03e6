#!/usr/bin/env python3
"""Train the packaged checkpoint briefly on a CPU, from a series table and co-registered chips.

    python scripts/make_provisional_checkpoint.py REAL hub/mae-s1s2 --minutes 12

REAL holds `series/series.parquet` and `terramesh/{S1RTC,S2L1C,S2L2A}/*.tif`. Only sources whose licence permits it are
used (`SOURCES`, and terramesh); no label is read. The run on SEN12MS that replaces these weights does not use this file.
"""

import argparse
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from croplem_hf import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, make_sample
from croplem_hf.data import SeriesTable
from croplem_hf.data.geotiff import read_geotiff

# Share of the batches, level of the optics. DEA's composites are surface reflectance; presto's points are L1C.
SOURCES = {
    "dea_cropmask_2019": (0.40, "L2A"),
    "worldcereal_france_2022": (0.12, "L2A"),
    "worldcereal_france_2023": (0.12, "L2A"),
    "presto_usa": (0.06, "L1C"),
}
CHIPS_SHARE = 0.30
# The +1000 offset stands in some files and not in others; B10 and the dark end of the histogram tell which.
CHIP_OFFSETS = {
    "S2L1C": {"282D_485L_3_3": 1000, "433D_629L_3_1": 1000, "609U_541L_3_0": 1000, "637U_59R_1_3": 0},
    "S2L2A": {"282D_485L_3_3": 0, "433D_629L_3_1": 1000, "609U_541L_3_0": 0, "637U_59R_1_3": 0},
}
BATCH_TOKENS = 4096


def load_series(path: Path, processor: CropLEMImageProcessor) -> list[tuple[float, dict]]:
    """-> [(share, inputs of all samples of one source and length)]."""
    buckets = []
    for level in ("L1C", "L2A"):
        table = SeriesTable(path, s2_level=level)
        groups = defaultdict(list)
        for n in range(len(table)):
            sample = table[n]
            if SOURCES.get(sample["source"], (0, ""))[1] == level:
                groups[sample["source"], *(0 if sample[s] is None else len(sample[s]) for s in ("s1", "s2"))].append(sample)
        for (source, *dates), samples in groups.items():
            of_source = sum(len(g) for key, g in groups.items() if key[0] == source)
            print(f"{source} {level} {dates}: {len(samples)}", flush=True)
            buckets.append((SOURCES[source][0] * len(samples) / of_source, dict(processor(samples))))
    return buckets


def load_chips(folder: Path) -> list[dict]:
    """Samples of whole chips, each place at both levels."""
    samples = []
    for level, offsets in CHIP_OFFSETS.items():
        for place, offset in offsets.items():
            s1, _ = read_geotiff(folder / "S1RTC" / f"{place}.tif", count=2)
            s2, info = read_geotiff(folder / level / f"{place}.tif")
            s2 = np.maximum(s2.astype(np.float32) - offset, 0)
            if len(s2) == 12:
                s2 = np.insert(s2, 10, np.nan, axis=0)
            dates = ["2021-07-01"]
            samples.append(make_sample(
                f"{level}/{place}", gsd=info.gsd, s1=s1[None], s1_dates=dates, s1_kind="gamma0", s2=s2[None],
                s2_dates=dates, s2_level=level[2:],
            ))  # fmt: skip
    return samples


def chip_batch(chips: list[dict], rng: np.random.Generator) -> tuple[dict, int]:
    """Random crops of the chips, of a size that suits a random patch size -> (inputs, patch size)."""
    p = int(rng.choice([1, 2, 4, 8, 16]))
    side = p * int(rng.integers(3, 9))
    count = max(2, BATCH_TOKENS // (2 * (side // p) ** 2))
    stack = defaultdict(list)
    for _ in range(min(count, 64)):
        chip = chips[rng.integers(len(chips))]
        y, x = (int(rng.integers(0, n - side + 1)) for n in chip["s1_valid"].shape[2:])
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        for key, value in chip.items():
            value = value[0]
            if value.ndim > 2 or key.endswith("_valid"):
                value = torch.rot90(value[..., y : y + side, x : x + side], turn, (-2, -1))
                value = value.flip(-1) if flip else value
            stack[key].append(value)
    return {key: torch.stack(values) for key, values in stack.items()}, p


def augment(batch: dict, rng: np.random.Generator, generator: torch.Generator) -> dict:
    """Shift the calendar, hide a sensor, drop dates, and jitter the gain of each sensor, by sample or batch."""
    batch = dict(batch)
    n = len(batch["gsd"])
    shift = torch.randint(0, 365, (n, 1), generator=generator) * (torch.rand(n, 1, generator=generator) < 0.7)
    present = [s for s in ("s1", "s2") if f"{s}_values" in batch and batch[f"{s}_valid"].any()]
    if len(present) == 2 and rng.random() < 0.35:
        gone = present[int(rng.random() < 0.4)]
        batch = {k: v for k, v in batch.items() if not k.startswith(gone)}
        present.remove(gone)
    for sensor in present:
        values = batch[f"{sensor}_values"]
        batch[f"{sensor}_days"] = batch[f"{sensor}_days"] + shift
        gain = 0.25 if sensor == "s1" else 0.1  # about 1 dB, and a tenth of the spread of a band
        batch[f"{sensor}_values"] = values + gain * torch.randn(n, 1, 1, 1, 1, generator=generator)
        dates = values.shape[1]
        if dates > 2 and rng.random() < 0.5:
            keep = np.sort(rng.permutation(dates)[: rng.integers(2, dates)])
            for key in ("values", "days", "valid", "bands"):
                if f"{sensor}_{key}" in batch:
                    batch[f"{sensor}_{key}"] = batch[f"{sensor}_{key}"][:, keep]
    usable = torch.stack([batch[f"{s}_valid"].flatten(1).any(1) for s in present]).any(0)
    return {k: v[usable] for k, v in batch.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    processor, model = CropLEMImageProcessor(), CropLEMForPreTraining(CropLEMConfig())
    series = load_series(args.real / "series/series.parquet", processor)
    chips = [dict(processor(chip)) for chip in load_chips(args.real / "terramesh")]
    shares = np.array([share for share, _ in series] + [CHIPS_SHARE])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95))

    start, step, recent = time.time(), 0, []
    while (progress := (time.time() - start) / (60 * args.minutes)) < 1:
        rate = 1e-3 * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        optimiser.param_groups[0]["lr"] = rate
        kind = rng.choice(len(shares), p=shares / shares.sum())
        if kind == len(series):
            batch, p = chip_batch(chips, rng)
        else:
            inputs, p = series[kind][1], 1
            tokens = sum(inputs[f"{s}_values"].shape[1] for s in ("s1", "s2") if f"{s}_values" in inputs)
            rows = torch.as_tensor(rng.integers(0, len(inputs["gsd"]), min(512, BATCH_TOKENS // tokens)))
            batch = {key: value[rows] for key, value in inputs.items()}
        batch = augment(batch, rng, generator)
        loss = model(**batch, patch_size=p, generator=generator).loss
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: loss is {loss.item()}")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        step += 1
        if step % 200 == 0:
            print(f"step {step}  {100 * progress:.0f} %  loss {np.mean(recent[-200:]):.4f}", flush=True)

    model.eval()
    means = []
    with torch.inference_mode():
        for _, inputs in series:
            rows = torch.as_tensor(rng.permutation(len(inputs["gsd"]))[:512])
            means.append(model.croplem(**{k: v[rows] for k, v in inputs.items()}, patch_size=1).pooler_output.mean(0))
        for _ in range(16):
            batch, p = chip_batch(chips, rng)
            means.append(model.croplem(**batch, patch_size=p).pooler_output.mean(0))
    # Series and chips weigh alike, whatever their numbers.
    groups = [torch.stack(means[: len(series)]).mean(0), torch.stack(means[len(series) :]).mean(0)]
    model.croplem.embedding_centre.copy_(torch.stack(groups).mean(0))
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"{step} steps in {args.minutes} minutes, loss {np.mean(recent[-200:]):.4f} -> {args.out}")


if __name__ == "__main__":
    main()
