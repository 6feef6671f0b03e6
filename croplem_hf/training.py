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
import logging
import math
import os
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError

from .augment import FEWEST_TRIED, TrainingBatches, mask_seed
from .errors import CheckpointError, CropLEMError, DataError
from .training_bad_batch import load_bad_batch, save_bad_batch
from .training_config import ProbeConfig, SourceConfig, TrainingConfig, load_config
from .training_ema import WeightAverage
from .training_files import (
    RunFiles,
    RunState,
    checkpoints_in,
    clear_run,
    config_record,
    load_averages,
    load_optimizer,
    locked,
    optimizer_tensors,
    read_state,
    rotate,
    save_checkpoint,
    tidy_folder,
)
from .training_outputs import Outputs, WholeModel
from .training_setup import (
    build_accelerator,
    build_model,
    build_optimizer,
    learning_rate_at,
    open_data,
    read_targets,
)
from .training_sharding import gather
from .training_signals import catch_signals, leave_signals_to_parent

logger = logging.getLogger(__name__)


def train(config: TrainingConfig, *, resume: bool | None = None) -> str:
    """Run a configuration in this process, which may be one of several that a launcher started.

    Writes OUT/checkpoints/step-XXXXXXXX, OUT/log.csv, OUT/pictures, OUT/trackers and OUT/skipped.csv, with `keep_best`
    OUT/best, and at the end OUT/model: encoder, decoder and processor, with the encoder's `embedding_centre` set.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in `config.out`, or False to delete what is there and start over; None
            goes on if there is a checkpoint.

    Returns:
        "finished", "interrupted" or "time limit".

    Raises:
        DataError: data or configuration cannot be used, or more than half of the items that were tried.
        CheckpointError: the checkpoint belongs to another configuration or other data, there is none, or another run
            writes into `config.out`.
        CropLEMError: the loss or the gradient is not finite, naming step, items and the file with the batch.
    """
    accelerator = build_accelerator(config)
    with locked(Path(config.out)) if accelerator.is_main_process else contextlib.nullcontext():
        try:
            return _train(accelerator, config, resume)
        finally:
            for tracker in getattr(accelerator, "trackers", ()):
                tracker.finish()


def _train(accelerator: Accelerator, config: TrainingConfig, resume: bool | None) -> str:
    rank, ranks, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    device = accelerator.device
    out, accumulation = Path(config.out), config.gradient_accumulation_steps

    sources, plan, data = open_data(config)
    checkpoint = None
    if is_main:
        tidy_folder(out)
        checkpoint = None if resume is False else next(reversed(checkpoints_in(out)), None)
    # One process decides, in case the others see the folder later.
    checkpoint = broadcast_object_list([checkpoint])[0]
    if checkpoint is None and resume:
        raise CheckpointError(f"{out / 'checkpoints'}: no checkpoint to resume from; leave --resume out to start")
    state, record = (RunState(), {}) if checkpoint is None else read_state(checkpoint, config, data, accelerator)
    model, processor = build_model(config, checkpoint)
    targets = read_targets(config, model.config.latent_size, sources, plan)
    if is_main and checkpoint is None:
        clear_run(out, fresh=resume is False)  # not before what could be wrong was read
    elif is_main:
        rotate(out, config.keep_checkpoints)  # a kill after the last checkpoint may have left more
    whole = WholeModel(model, accelerator)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    plain = accelerator.unwrap_model(model, keep_torch_compile=True)
    if checkpoint is not None:
        load_optimizer(checkpoint, plain, optimizer)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(record["scaler"])
    average = None
    if config.ema_decay is not None and (is_main or whole.sharded):
        average = WeightAverage(plain, config.ema_decay, None if checkpoint is None else load_averages(checkpoint))
    whole.follow(plain, average)
    if config.trackers in (None, ["tensorboard"]):
        # TensorBoard would keep settings in a folder of their own, another one at every start.
        accelerator.init_trackers("pretraining")
    else:
        accelerator.init_trackers("pretraining", config={k: str(v) for k, v in config_record(config).items()})
    logger.info(
        "%s processes: %d (%s%s, precision: %s), %d items, %d batches of %d an epoch, %.4g epochs; step %d of %d",
        "start:" if checkpoint is None else f"resume from {checkpoint}:", ranks, device.type,
        ", FSDP" if whole.sharded else "", accelerator.mixed_precision, plan.items, plan.batches_per_epoch,
        config.batch_size, config.steps * accumulation / plan.batches_per_epoch, state.step, config.steps,
    )  # fmt: skip

    batches = TrainingBatches(
        sources, plan, processor, patch_sizes=plain.config.train_patch_sizes, max_tokens=config.max_tokens,
        augmentation=config.augmentation, seed=config.seed, rank=rank, ranks=ranks,
        targets=targets,
    )  # fmt: skip
    # The sampler is the list of batches to come: worker w of W reads the first of them, w, w + W, ...
    loader = iter(torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=range(state.step * accumulation, config.steps * accumulation),
        num_workers=config.num_workers, worker_init_fn=leave_signals_to_parent, pin_memory=device.type == "cuda",
    ))  # fmt: skip

    def save() -> None:
        nonlocal clock
        state.seconds, clock = state.seconds + time.monotonic() - clock, time.monotonic()
        states = gather(optimizer_tensors(plain, optimizer), keep=is_main)
        if is_main:
            position = state.step * accumulation
            content = dataclasses.asdict(state) | {
                "epoch": position // plan.batches_per_epoch, "next_batch": position % plan.batches_per_epoch,
                "seed": config.seed, "world_size": ranks, "sharded": whole.sharded,
                "mixed_precision": accelerator.mixed_precision, "data": data,
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "config": config_record(config),
            }  # fmt: skip
            folder = out / "checkpoints" / f"step-{state.step:08d}"
            averages = whole.average and whole.average.averages
            save_checkpoint(folder, whole.model, processor, states, content, averages)
            rotate(out, config.keep_checkpoints)
        accelerator.wait_for_everyone()

    outputs = Outputs(config, whole.model, processor, whole.average, sources, plan) if is_main else None
    files = RunFiles(out, state.step) if is_main else None
    result, bad, tried, waited, steps_timed = "finished", 0, 0, 0.0, 0
    begin = mark = clock = time.monotonic()
    with catch_signals() as caught:
        while state.step < config.steps and result == "finished":
            rate = learning_rate_at(state.step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = []  # of the step, until its gradient is known to be finite
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
                parts.append((batch, seed))
                with accelerator.accumulate(model):
                    generator = torch.Generator(device).manual_seed(seed)
                    loss = model(**inputs, patch_size=batch["patch_size"], generator=generator).loss
                    mean = accelerator.reduce(loss.detach().float(), "mean").item()
                    if not math.isfinite(mean):
                        guilty = [] if torch.isfinite(loss) else [len(parts) - 1]
                        _stop(f"the loss is {mean}", parts, guilty, out, state.step + 1, rank)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip_norm))
                        # In half precision the scaler skips such a step; here it would destroy the weights.
                        if not math.isfinite(norm) and accelerator.scaler is None:
                            every = range(len(parts))
                            _stop(f"the gradient's norm is {norm}", parts, every, out, state.step + 1, rank)
                    optimizer.step()
                    optimizer.zero_grad()
                state.loss_sum, state.loss_count = state.loss_sum + mean, state.loss_count + 1
            if average is not None:
                average.update(state.step)

            state.step += 1
            steps_timed += 1
            last = state.step == config.steps
            due = config.probe is not None and (state.step % config.probe_every == 0 or last)
            draw = state.step % config.picture_every == 0 or last
            keep = state.step % config.checkpoint_every == 0 or last or result != "finished"
            if due or draw or keep:
                whole.refresh()
            scored = {"probe": outputs.score(state.step)} if due and is_main else {}
            if is_main and (state.step % config.log_every == 0 or due or last):
                seconds = time.monotonic() - mark
                row = {
                    "epoch": state.step * accumulation / plan.batches_per_epoch,
                    "loss": state.loss_sum / state.loss_count, "learning_rate": rate, "gradient_norm": norm,
                    "samples_per_second": steps_timed * accumulation * config.batch_size / seconds,
                    "data_wait_percent": 100 * waited / seconds,
                } | scored  # fmt: skip
                logger.info(
                    "step %d/%d  epoch %.2f  loss %.4f  lr %.2e  %.1f samples/s  data wait %.0f %%",
                    state.step, config.steps, row["epoch"], row["loss"], rate, row["samples_per_second"],
                    row["data_wait_percent"],
                )  # fmt: skip
                accelerator.log(row, step=state.step)
                files.add_row(state.step, row)
            if state.step % config.log_every == 0:
                state.loss_sum, state.loss_count = 0.0, 0
                mark, waited, steps_timed = time.monotonic(), 0.0, 0
            if is_main and draw:
                outputs.draw(state.step)
            if keep:
                save()
            result = "finished" if last else result

    if result != "finished":
        logger.info(
            "%s: stopped after step %d of %d, checkpoint in %s; the same command goes on from there (without --fresh)",
            result, state.step, config.steps, out / "checkpoints" / f"step-{state.step:08d}",
        )  # fmt: skip
    elif is_main:
        cost = {
            "steps": state.step, "samples": state.step * accumulation * config.batch_size,
            "hours": round(state.seconds / 3600, 4), "processes": ranks, "precision": accelerator.mixed_precision,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        }  # fmt: skip
        outputs.save("model", {"training.json": cost})
        what = "" if average is None else f" (weights averaged over the run, ema_decay {config.ema_decay})"
        logger.info("finished: %d steps, model%s in %s", state.step, what, out / "model")
    accelerator.wait_for_everyone()
    return result


def _stop(
    what: str, parts: Sequence[tuple[dict, int]], guilty: Sequence[int], out: Path, step: int, rank: int
) -> typing.NoReturn:
    """Called by all processes together: keeps and names those parts of the step that are, or may be, guilty."""
    found = []
    for part in guilty:
        batch, seed = parts[part]
        path = save_bad_batch(
            out, batch["inputs"], step=step, rank=rank, part=part, ids=batch["ids"], patch_size=batch["patch_size"],
            mask_seed=seed, reason=what,
        )  # fmt: skip
        found.append((path.name, list(batch["ids"])))
    found = gather_object(found)
    names, ids = [name for name, _ in found], [id for _, ids in found for id in ids]
    raise CropLEMError(
        f"step {step}: {what}; the run stops, and its checkpoints are as they were before. Items of this batch: "
        f"{', '.join(ids)}. Try a lower learning_rate or longer warmup_steps, or look at these items; what the model "
        f"was given is in {out}: {', '.join(names)} (croplem_hf.training.load_bad_batch)"
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
    either.add_argument("--fresh", action="store_true", help="start over; deletes all that an earlier run wrote in DIR")
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
    except (CropLEMError, OSError, SafetensorError) as error:
        where = f" (process {rank})" if rank else ""
        print(f"pretrain{where}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pretrain: stopped at once; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


__all__ = [
    "ProbeConfig", "SourceConfig", "TrainingConfig", "learning_rate_at", "load_bad_batch", "load_config", "main",
    "train",
]  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
