"""Masked-autoencoder pretraining on Accelerate: the loop and its command.

    accelerate launch scripts/pretrain.py --config scripts/pretrain_sen12ms.yaml
    accelerate launch -m croplem_hf.training --config scripts/pretrain_sen12ms.yaml --out runs/second
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 scripts/pretrain.py --config CONFIG

All that is random is a function of the seed and of a step's number, so a run that was stopped, however, goes on bit by
bit as if it had not been; run the same command again.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from huggingface_hub.errors import StrictDataclassError

from .augment import FEWEST_TRIED, Augmentation, TrainingBatches, augment, draw_recipe, mask_seed
from .data import open_source
from .data.plan import BatchPlan, read_layout, select_items
from .data.sample import Sample
from .embedding import Embedder
from .errors import CheckpointError, CropLEMError, DataError
from .model import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor
from .reconstruction import reconstruct, reconstruction_sheet
from .training_config import SourceConfig, TrainingConfig, check_keys, load_config
from .training_files import (
    RunFiles,
    RunState,
    checkpoints_in,
    config_record,
    load_optimizer,
    prepare_folder,
    read_state,
    save_checkpoint,
    save_model,
)

logger = logging.getLogger(__name__)

CENTRE_SAMPLES = 1024
"""Samples over which the mean embedding is taken at the end of a run."""
PICTURE_SAMPLES = 6


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimiser step `step`, counted from 0: a linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low, high = min(config.min_learning_rate, config.learning_rate), config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))


def open_data(config: TrainingConfig) -> tuple[list, BatchPlan, str]:
    """Sources, the plan over them, and a hash of what they hold."""
    sources, layouts, digest = [], [], hashlib.sha256()
    for spec in config.sources:
        source = open_source(
            spec.path, sensors=spec.sensors, s2_level=spec.s2_level, s1_units=spec.s1_units, s2_units=spec.s2_units,
            s2_offset=spec.s2_offset,
        )  # fmt: skip
        if hasattr(source, "labels"):
            source.labels = False  # nothing here looks at land cover, so it is not read
        keep = select_items(source, spec.where, spec.test_scenes)
        layout = read_layout(source).keep(keep).crop(config.crop_size)
        logger.info("%s: %d of %d items, weight %g", spec.path, int(keep.sum()), len(source), spec.weight)
        sources.append(source)
        layouts.append(layout)
        digest.update("\n".join(source.ids).encode() + layout.shapes.tobytes())
    weights = [spec.weight for spec in config.sources]
    plan = BatchPlan(layouts, batch_size=config.batch_size, seed=config.seed, weights=weights)
    return sources, plan, digest.hexdigest()


def build_model(config: TrainingConfig, checkpoint: Path | None) -> tuple[CropLEMForPreTraining, CropLEMImageProcessor]:
    """Model and processor: of a checkpoint of this run, of `init_from`, or fresh."""
    torch.manual_seed(config.seed)  # of weights that are drawn: all of a fresh model
    start = checkpoint or config.init_from
    if start is not None:
        model = CropLEMForPreTraining.from_pretrained(str(start), dtype=torch.float32)
        return model, CropLEMImageProcessor.from_pretrained(str(start))
    check_keys(config.model, [field.name for field in dataclasses.fields(CropLEMConfig)], "model.")
    try:
        model_config = CropLEMConfig(**config.model)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise DataError(f"model: {' '.join(str(error).split())}") from error
    return CropLEMForPreTraining(model_config), CropLEMImageProcessor()


def build_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors do not decay."""
    groups = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    groups = [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=tuple(config.betas), weight_decay=config.weight_decay
    )


def read_targets(config: TrainingConfig, size: int) -> dict[str, np.ndarray]:
    """{id: float32 (size,)} of `config.latent_targets`; empty where there is none.

    Raises:
        DataError: a fresh model wants vectors and there is no file, it cannot be read, or its vectors are not as long
            as the model's `latent_size`.
    """
    if config.latent_targets is None:
        # A checkpoint that learned such vectors may go on without them: that term is then 0.
        if config.model.get("latent_size"):
            raise DataError(f"model.latent_size is {size}, but latent_targets names no table of vectors")
        return {}
    try:
        table = pq.read_table(config.latent_targets, columns=["id", "embedding"], partitioning=None)
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{config.latent_targets}: cannot be read as a table of id and embedding ({' '.join(str(error).split())})"
        ) from error
    if vectors.ndim != 2 or vectors.shape[1] != size:
        raise DataError(f"{config.latent_targets}: vectors {vectors.shape[1:]}, but model.latent_size is {size}")
    return dict(zip(table["id"].to_pylist(), vectors, strict=True))


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step in progress can be finished; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def handle(number: int, frame) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl-C and launchers signal whole process groups; the loaders must outlive that until the step is done.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def read_some(
    sources: Sequence, plan: BatchPlan, count: int, window: tuple[int, int] | None = None
) -> Iterator[Sample]:
    """Up to `count` samples that do not change with the run: one of each source and shape, then others.

    With `window`, a patch size and a number of tokens, images are cropped as in training, else they are whole.
    """
    items = np.random.default_rng([plan.seed, 21]).permutation(plan.epoch(0).reshape(-1, 3)[:, :2])
    items = items[np.sort(np.unique(items, axis=0, return_index=True)[1])]
    kinds = np.concatenate([items[:, :1], plan.shapes(items)], axis=1)
    first = np.sort(np.unique(kinds, axis=0, return_index=True)[1])[:count]
    rest = np.setdiff1d(np.arange(len(items)), first)
    still = Augmentation(0, 0.0, False, 0.0, 0.0, 0.0, 0.0)
    for item in items[np.concatenate([first, rest])][: 2 * count]:
        if count == 0:
            return
        with contextlib.suppress(DataError):
            sample = sources[item[0]][int(item[1])]
            if window is not None:
                recipe = draw_recipe(
                    plan.shapes(item[None]), seed=0, number=0, patch_sizes=window[:1], max_tokens=window[1],
                    augmentation=still,
                )  # fmt: skip
                sample = augment(sample, recipe, np.random.default_rng(0), still)
            yield sample
            count -= 1


def mean_embedding(model: CropLEMForPreTraining, processor: CropLEMImageProcessor, samples: Iterator) -> torch.Tensor:
    """Mean embedding (hidden_size,) of samples, few of them in memory at a time."""
    embedder = Embedder(model.croplem, processor, device=model.device)
    total, count = 0.0, 0
    while part := list(itertools.islice(samples, 16)):
        total = total + embedder.encode(part, centre=False).astype(np.float64).sum(axis=0)
        count += len(part)
    return torch.as_tensor(total / count, dtype=torch.float32)


def train(config: TrainingConfig, *, resume: bool | None = None) -> str:
    """Run a configuration in this process, which may be one of several that a launcher started.

    Writes OUT/checkpoints/step-XXXXXXXX, OUT/log.csv, OUT/pictures and OUT/skipped.csv, and at the end OUT/model:
    encoder, decoder and processor, with the encoder's `embedding_centre` set.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in `config.out`, or False to delete what is there and start over; None
            goes on if there is a checkpoint.

    Returns:
        "finished", "interrupted" or "time limit".

    Raises:
        DataError: data or configuration cannot be used, or more than half of the items that were tried.
        CheckpointError: the checkpoint belongs to another configuration or other data, or there is none.
        CropLEMError: the loss is not finite, naming step and items.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # A batch without one sensor leaves that sensor's parameters without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    _check_processes(accelerator, config)
    rank, ranks, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    device = accelerator.device
    out, accumulation = Path(config.out), config.gradient_accumulation_steps

    sources, plan, data = open_data(config)
    if is_main:
        prepare_folder(out, fresh=resume is False)
    accelerator.wait_for_everyone()
    checkpoint = next(reversed(checkpoints_in(out)), None)
    if checkpoint is None and resume:
        raise CheckpointError(f"{out / 'checkpoints'}: no checkpoint to resume from; leave --resume out to start")
    state, record = (RunState(), {}) if checkpoint is None else read_state(checkpoint, config, data, accelerator)
    model, processor = build_model(config, checkpoint)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    plain = accelerator.unwrap_model(model)
    if checkpoint is not None:
        load_optimizer(checkpoint, plain, optimizer)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(record["scaler"])
    logger.info(
        "%s processes: %d (%s, precision: %s), %d items, %d batches of %d an epoch, %.4g epochs; step %d of %d",
        "start:" if checkpoint is None else f"resume from {checkpoint}:", ranks, device.type,
        accelerator.mixed_precision, plan.items, plan.batches_per_epoch, config.batch_size,
        config.steps * accumulation / plan.batches_per_epoch, state.step, config.steps,
    )  # fmt: skip

    batches = TrainingBatches(
        sources, plan, processor, patch_sizes=plain.config.train_patch_sizes, max_tokens=config.max_tokens,
        augmentation=config.augmentation, seed=config.seed, rank=rank, ranks=ranks,
        targets=read_targets(config, plain.config.latent_size),
    )  # fmt: skip
    # The sampler is the list of batches to come: worker w of W reads the first of them, w, w + W, ...
    loader = iter(torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=range(state.step * accumulation, config.steps * accumulation),
        num_workers=config.num_workers, worker_init_fn=_leave_signals_to_parent, pin_memory=device.type == "cuda",
    ))  # fmt: skip

    def save() -> None:
        if is_main:
            position = state.step * accumulation
            content = dataclasses.asdict(state) | {
                "epoch": position // plan.batches_per_epoch, "next_batch": position % plan.batches_per_epoch,
                "seed": config.seed, "world_size": ranks, "mixed_precision": accelerator.mixed_precision, "data": data,
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "config": config_record(config),
            }  # fmt: skip
            folder = out / "checkpoints" / f"step-{state.step:08d}"
            save_checkpoint(folder, plain, processor, optimizer, content)
            for old in checkpoints_in(out)[: -config.keep_checkpoints]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def draw() -> None:
        if is_main:
            window = (plain.config.patch_size, config.max_tokens)
            samples = list(read_some(sources, plan, PICTURE_SAMPLES, window))
            results = reconstruct(plain, processor, samples, seed=config.seed)
            path = out / "pictures" / f"step-{state.step:08d}.png"
            reconstruction_sheet(
                results, [sample["id"] for sample in samples], processor, path, title=f"step {state.step}"
            )

    files = RunFiles(out, state.step) if is_main else None
    result, bad, tried, waited, steps_timed = "finished", 0, 0, 0.0, 0
    begin = mark = time.monotonic()
    with catch_signals() as caught:
        while state.step < config.steps and result == "finished":
            rate = learning_rate_at(state.step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for number in range(state.step * accumulation, (state.step + 1) * accumulation):
                tick = time.monotonic()
                batch = next(loader)
                waited += time.monotonic() - tick

                # What one process knows, all must know, or the others wait for it for ever.
                late = (time.monotonic() - begin) / 60 > (config.time_limit_minutes or math.inf)
                news = [batch["inputs"] is None, len(batch["bad"]), batch["tried"], bool(caught), late]
                failed, new_bad, new_tried, stop, late = accelerator.reduce(
                    torch.tensor(news, dtype=torch.float32, device=device), "sum"
                ).tolist()
                result = "interrupted" if stop else "time limit" if late else result
                bad, tried = bad + int(new_bad), tried + int(new_tried)
                if new_bad:
                    reasons = gather_object(batch["bad"])
                    if is_main:
                        files.add_skipped(reasons)
                if failed or (tried >= FEWEST_TRIED and 2 * bad > tried):
                    first = f"; the last: {reasons[-1][1]}" if new_bad else ""
                    raise DataError(
                        f"step {state.step + 1}: {bad} of {tried} items that were tried cannot be used{first}"
                    )

                inputs = {key: value.to(device, non_blocking=True) for key, value in batch["inputs"].items()}
                seed = mask_seed(config.seed, number, rank)
                torch.manual_seed(seed)  # of dropout, where the model has it
                with accelerator.accumulate(model):
                    generator = torch.Generator(device).manual_seed(seed)
                    loss = model(**inputs, patch_size=batch["patch_size"], generator=generator).loss
                    mean = accelerator.reduce(loss.detach().float(), "mean").item()
                    if not math.isfinite(mean):
                        _stop_at(f"the loss is {mean}", state.step, loss, batch["ids"])
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip_norm))
                        # In half precision the scaler skips such a step; here it would destroy the weights.
                        if not math.isfinite(norm) and accelerator.scaler is None:
                            _stop_at(f"the gradient's norm is {norm}", state.step, None, batch["ids"])
                    optimizer.step()
                    optimizer.zero_grad()
                state.loss_sum, state.loss_count = state.loss_sum + mean, state.loss_count + 1

            state.step += 1
            steps_timed += 1
            last = state.step == config.steps
            if is_main and (state.step % config.log_every == 0 or last):
                seconds = time.monotonic() - mark
                speed = steps_timed * accumulation * config.batch_size / seconds
                loss_mean, wait = state.loss_sum / state.loss_count, 100 * waited / seconds
                epoch = state.step * accumulation / plan.batches_per_epoch
                logger.info(
                    "step %d/%d  epoch %.2f  loss %.4f  lr %.2e  %.1f samples/s  data wait %.0f %%",
                    state.step, config.steps, epoch, loss_mean, rate, speed, wait,
                )  # fmt: skip
                files.add_row((state.step, f"{epoch:.4f}", loss_mean, rate, norm, f"{speed:.1f}", f"{wait:.1f}"))
            if state.step % config.log_every == 0:
                state.loss_sum, state.loss_count = 0.0, 0
                mark, waited, steps_timed = time.monotonic(), 0.0, 0
            if state.step % config.picture_every == 0 or last:
                draw()
            if state.step % config.checkpoint_every == 0 or last or result != "finished":
                save()
            result = "finished" if last else result

    if result != "finished":
        logger.info(
            "%s: stopped after step %d of %d, checkpoint in %s; the same command goes on from there (without --fresh)",
            result, state.step, config.steps, out / "checkpoints" / f"step-{state.step:08d}",
        )  # fmt: skip
    elif is_main:
        centre = mean_embedding(plain, processor, read_some(sources, plan, CENTRE_SAMPLES))
        plain.croplem.embedding_centre.copy_(centre)
        save_model(out / "model", plain, processor)
        logger.info("finished: %d steps, model in %s", state.step, out / "model")
    accelerator.wait_for_everyone()
    return result


def _check_processes(accelerator: Accelerator, config: TrainingConfig) -> None:
    ranks = accelerator.num_processes
    if config.expected_processes not in (None, ranks):
        raise DataError(
            f"expected_processes is {config.expected_processes}, but the number of processes is {ranks}; on CPUs start "
            f"them with ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node {config.expected_processes} "
            "(`accelerate launch --cpu` starts only one), on GPUs with accelerate launch --num_processes "
            f"{config.expected_processes}"
        )
    if config.batch_size % ranks:
        raise DataError(f"batch_size {config.batch_size} must be divisible by the number of processes, {ranks}")
    if accelerator.distributed_type in (
        DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA,
    ):  # fmt: skip
        raise DataError(
            f"{accelerator.distributed_type.value} is not supported, checkpoints here hold whole models; run "
            "`accelerate config` and choose plain data parallelism"
        )


def _stop_at(what: str, step: int, loss: torch.Tensor | None, ids: Sequence[str]) -> typing.NoReturn:
    """Called by all processes together: names the items of those whose loss is not finite (of all, if none is)."""
    guilty = loss is None or not bool(torch.isfinite(loss))
    names = gather_object(list(ids) if guilty else [])
    raise CropLEMError(
        f"step {step + 1}: {what}; the run stops, and its checkpoints are as they were before. Items of this batch: "
        f"{', '.join(names)}. Try a lower learning_rate or longer warmup_steps, or look at these items"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 after an error, 130 after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="pretrain", description="Pretrain the encoder as a masked autoencoder.",
        epilog="Start it with accelerate launch or torchrun. The same command again goes on where a run was stopped.",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML or JSON, see TrainingConfig")
    parser.add_argument("--out", metavar="DIR", help="folder to write, instead of the configuration's")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="insist on a checkpoint in DIR to go on from")
    either.add_argument("--fresh", action="store_true", help="start over; deletes checkpoints and model in DIR")
    args = parser.parse_args(argv)
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("httpx", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        config = load_config(args.config, out=args.out)
        result = train(config, resume=True if args.resume else False if args.fresh else None)
        return 130 if result == "interrupted" else 0
    except (CropLEMError, OSError) as error:
        where = f" (process {rank})" if rank else ""
        print(f"pretrain{where}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pretrain: stopped at once; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


__all__ = ["SourceConfig", "TrainingConfig", "learning_rate_at", "load_config", "main", "train"]

if __name__ == "__main__":
    sys.exit(main())
