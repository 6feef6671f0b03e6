"""How fast a pretraining step is: CropLEMForPreTraining against ViTMAEForPreTraining of the same size.

    OMP_NUM_THREADS=1 python benchmarks/pretrain_step.py --json pretrain_step.json

Both have the same encoder, decoder, number of tokens, share of hidden tokens and batch; a step is forward, backward and
AdamW on one batch that is in memory. ViTMAE takes square images only, so the layouts are optics alone (13 bands, as
many tokens as patches) and two dates of each sensor (four times as many tokens, against an image of twice the side and
eight bands, which holds as many values). Rounds are interleaved; on a CPU a rate is of CPU time. ViTMAE has a class
token more.

Keys of the JSON: `step_vs_vitmae`, the smallest over the layouts of the ratio of medians, CropLEM over ViTMAE;
`layouts` with samples/s and the spread of the ratio; `data_wait_percent` of a run of the training loop on an invented
SEN12MS tree in shards. With a CUDA device also `gpu`: base at 256 px in bf16, samples/s, MFU (of --peak-tflops), peak
memory, and samples/s with the shard loader feeding it.
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from croplem_hf import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, build_shards, generate_sen12ms
from croplem_hf.training import SourceConfig, TrainingConfig, train

SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "decoder_hidden_size",
    "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size", "layer_norm_eps",
)  # fmt: skip
# Sensors with dates, the side of an image in pixels and patch size; then the side and bands of ViTMAE's image.
LAYOUTS = {
    "optics, 64 px, patch 8": ((0, 1), 64, 8, 64, 13),
    "optics, 128 px, patch 16": ((0, 1), 128, 16, 128, 13),
    "2 dates of both, 64 px, patch 8": ((2, 2), 64, 8, 128, 8),
    "2 dates of both, 128 px, patch 16": ((2, 2), 128, 16, 256, 8),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, dense bf16 (default: H100 SXM)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures = {"device": device, "preset": args.preset, "batch": args.batch, "layouts": {}}
    for name, layout in LAYOUTS.items():
        figures["layouts"][name] = compare(*layout, args.preset, args.batch, args.rounds, args.steps, device)
        print(name, figures["layouts"][name], flush=True)
    figures["step_vs_vitmae"] = min(entry["ratio"] for entry in figures["layouts"].values())
    figures["data_wait_percent"] = data_wait()
    if device == "cuda":
        figures["gpu"] = base_on_gpu(args.batch, args.peak_tflops)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))


def inputs(dates: tuple[int, int], side: int, batch: int, device: str) -> dict[str, torch.Tensor]:
    """A batch as the processor gives it, every pixel valid."""
    out = {"gsd": torch.full((batch,), 10.0)}
    for sensor, t, channels in (("s1", dates[0], 2), ("s2", dates[1], 13)):
        if t:
            out[f"{sensor}_values"] = torch.randn(batch, t, channels, side, side)
            out[f"{sensor}_days"] = torch.arange(t).expand(batch, t) * 90 + 15
            out[f"{sensor}_valid"] = torch.ones(batch, t, side, side, dtype=torch.bool)
    if dates[1]:
        out["s2_bands"] = torch.ones(batch, dates[1], 13, dtype=torch.bool)
        out["s2_level"] = torch.zeros(batch, dtype=torch.long)
    return {key: value.to(device) for key, value in out.items()}


def compare(dates, side, patch, image, channels, preset, batch, rounds, steps, device) -> dict:
    """Samples/s of both models in interleaved rounds."""
    torch.manual_seed(0)
    config = CropLEMConfig.preset(preset)
    ours = CropLEMForPreTraining(config).to(device).train()
    theirs = ViTMAEForPreTraining(ViTMAEConfig(
        image_size=image, patch_size=patch, num_channels=channels, mask_ratio=config.mask_ratio,
        **{name: getattr(config, name) for name in SIZES},
    )).to(device).train()  # fmt: skip
    given, pixels = inputs(dates, side, batch, device), torch.randn(batch, channels, image, image, device=device)
    tokens = sum(dates) * (side // patch) ** 2
    assert tokens == (image // patch) ** 2
    runs = {
        "croplem": stepper(ours, lambda: ours(**given, patch_size=patch).loss),
        "vitmae": stepper(theirs, lambda: theirs(pixels).loss),
    }
    rates = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in sorted(runs, reverse=bool(turn % 2)):
            seconds = timed(runs[name], steps, device)
            if turn:  # the first one warms up
                rates[name].append(batch * steps / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [a / b for a, b in zip(rates["croplem"], rates["vitmae"], strict=True)]
    return {
        "tokens": tokens, "croplem": round(medians["croplem"], 1), "vitmae": round(medians["vitmae"], 1),
        "ratio": round(medians["croplem"] / medians["vitmae"], 3),
        "ratio_10_90": [round(float(q), 3) for q in np.percentile(ratios, [10, 90])],
    }  # fmt: skip


def stepper(model: torch.nn.Module, loss_of):
    """A function that does one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step, steps: int, device: str) -> float:
    """Seconds of `steps` steps: CPU time on a CPU, else elapsed."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def data_wait() -> float:
    """Percent of the time of the training loop, nano on shards of patches of 256 px, in which it waits for data."""
    with tempfile.TemporaryDirectory() as folder:
        generate_sen12ms(Path(folder, "tree"), size=256)
        build_shards(Path(folder, "tree"), Path(folder, "shards"), workers=1, progress=False)
        config = TrainingConfig(
            sources=[SourceConfig(str(Path(folder, "shards")))], out=str(Path(folder, "run")), steps=30, batch_size=8,
            warmup_steps=0, num_workers=1, log_every=10, checkpoint_every=99, picture_every=99, trackers=[],
        )  # fmt: skip
        train(config)
        with open(Path(folder, "run", "log.csv"), newline="") as handle:
            return float(list(csv.DictReader(handle))[1]["data_wait_percent"])


def base_on_gpu(batch: int, peak_tflops: float) -> dict:
    """Base at 256 px, both sensors, patch 16, bf16: rate, MFU, peak memory; and the rate with shards feeding it."""
    from torch.utils.flop_counter import FlopCounterMode

    model = CropLEMForPreTraining(CropLEMConfig.preset("base")).to("cuda").train()
    given = inputs((1, 1), 256, batch, "cuda")

    def loss(given=given):
        with torch.autocast("cuda", torch.bfloat16):
            return model(**given, patch_size=16).loss

    with FlopCounterMode(display=False) as counter:
        loss().backward()
    step = stepper(model, loss)
    timed(step, 5, "cuda")
    torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, 20, "cuda") / 20
    figures = {
        "samples_per_s": batch / seconds, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "mfu": counter.get_total_flops() / seconds / (peak_tflops * 1e12),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        generate_sen12ms(Path(folder, "tree"), size=256)
        build_shards(Path(folder, "tree"), Path(folder, "shards"), workers=1, progress=False)
        from croplem_hf.augment import Augmentation, TrainingBatches
        from croplem_hf.training_setup import open_data

        config = TrainingConfig(sources=[SourceConfig(str(Path(folder, "shards")))], out=folder, batch_size=batch)
        sources, plan, _ = open_data(config)
        data = TrainingBatches(
            sources, plan, CropLEMImageProcessor(), patch_sizes=[16], max_tokens=512,
            augmentation=Augmentation(hide_sensor=0.0),
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(data, batch_size=None, sampler=range(60), num_workers=8, pin_memory=True)
        batches = iter(loader)

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def fed() -> None:
            found = {key: value.to("cuda", non_blocking=True) for key, value in next(batches)["inputs"].items()}
            loss(found).backward()
            optimizer.step()
            optimizer.zero_grad()

        timed(fed, 20, "cuda")
        figures["samples_per_s_from_shards"] = batch * 40 / timed(fed, 40, "cuda")
    return figures


if __name__ == "__main__":
    main()
