"""Samples -> embeddings: one `encode` for arrays, and one `embed_source` that streams to the embeddings table."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm

from . import __version__
from .compact import quantise
from .data.sample import Sample
from .embedding_inputs import as_samples, check_usable, chunks, is_inputs, is_sample
from .embedding_options import TOKENS_PER_BATCH, EncodeOptions
from .errors import CheckpointError, DataError
from .export import export_source
from .model import CropLEMConfig, CropLEMImageProcessor, CropLEMModel
from .model.tokens_croplem import pool_sensors
from .resolver import DEFAULT_CHECKPOINT, hook
from .sensors import SENSORS
from .table import EmbeddingsTable, read_table

logger = logging.getLogger(__name__)


def default_patch_size(height: int, width: int) -> int:
    """Patch size for an image of this size in pixels: 1 for series and tiny fields, 16 for scenes of 128 and more."""
    side = min(height, width)
    return next(p for p, least in ((16, 128), (8, 32), (4, 16), (2, 8), (1, 0)) if side >= least)


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's weights: the same however they were stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Embedder:
    """An encoder with its processor.

        embedder = Embedder.from_pretrained("croplem/mae-s1s2")
        vectors = embedder.encode(samples)                       # (N, D) float32

    Args:
        model: the encoder; it is put into evaluation mode.
        processor: its processor.
        name: name for messages and tables.
        device: "cpu", "cuda", ...; None takes an accelerator where there is one.
    """

    def __init__(
        self,
        model: CropLEMModel,
        processor: CropLEMImageProcessor,
        *,
        name: str | None = None,
        device: str | torch.device | None = None,
    ):
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise CheckpointError(f"device {str(device)!r} cannot be used ({_sentence(error)}); try 'cpu'") from error
        for key in ("s2_mean", "s2_std"):
            if model.config.s2_indices and list(getattr(processor, key)) != list(getattr(model.config, key)):
                raise CheckpointError(f"{key} of the processor is not that of the model; take both from one checkpoint")
        self.processor = processor
        self.name = name or "unnamed"

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_CHECKPOINT, *, device: str | torch.device | None = None, **kwargs
    ) -> "Embedder":
        """Load model and processor from one folder, found as `CropLEMModel.from_pretrained` finds it.

        Args:
            name: a checkpoint's name or folder.
            device: as in the constructor.
            kwargs: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            CheckpointError: there is no such checkpoint, it cannot be had, it is damaged, or it lacks weights.
        """
        folder, rest = hook(name, kwargs)
        if rest:
            raise TypeError(f"unknown arguments {sorted(rest)}")
        model, processor = _load(folder)
        logger.info("model %s from %s", name, folder)
        return cls(model, processor, name=str(name), device=device)

    @property
    def dim(self) -> int:
        """Length of an embedding, all of it."""
        return self.model.config.embedding_size

    def encode(
        self,
        samples: Sample | Iterable[Sample] | Mapping,
        *,
        sensors: Sequence[str] | None = None,
        patch_size: int | None = None,
        centre: bool = True,
        pooling: str = "default",
        truncate_dim: int | None = None,
        precision: str = "float32",
        dtype: str = "float32",
        tokens_per_batch: int = TOKENS_PER_BATCH,
        progress: bool = False,
    ) -> np.ndarray | list[np.ndarray] | tuple[np.ndarray, np.ndarray]:
        """Embed samples. Each embedding depends on its own sample alone, whatever else is in the batch.

        Args:
            samples: one of

                - a sample (`croplem_hf.data.sample`), or any iterable of samples;
                - a source, as `croplem_hf.open_source` gives it;
                - a `datasets.Dataset` or `IterableDataset` of our shards, or its rows;
                - arrays of N samples in the units of samples, `{"s2": (N, T2, 13, H, W), "s2_dates": ..., "s2_level":
                  "L2A"}` and likewise `s1`: every key of a sample with a first axis of N; dates may be one list for
                  all, and level and gsd one value;
                - inputs of the model, as `CropLEMImageProcessor` makes them (`s1_values`, ...).
            sensors: use only these, of "s1" and "s2"; None for whatever a sample holds.
            patch_size: pixels a patch; None chooses by the size of the sample (`default_patch_size`).
            centre: subtract the mean embedding of the pretraining data, stored with the checkpoint. Raw embeddings
                of very different places are nearly parallel, so that cosines tell little.
            pooling: "mean" or "mean_std" of the tokens; "default" is that of the checkpoint; "dense" gives each
                patch of an image its own features, the mean over its dates and sensors.
            truncate_dim: only so many numbers, the first: those of the means come before those of the spread. What
                that loses stands in benchmarks/RESULTS.md; random rotations before the cut lose as much.
            precision: "int8" gives one byte a number (`croplem_hf.compact.quantise`).
            dtype: "bfloat16" computes the blocks of the encoder in it, where that is faster.
            tokens_per_batch: how much is embedded at once.
            progress: show a bar on stderr.

        Returns:
            float32 (N, D); (D,) for a single sample. With precision "int8" codes, int8 (N, D), and scales, float32
            (N,). With pooling "dense" float32 (rows, columns, hidden size) of each sample, in a list for several; NaN
            where nothing is valid on any date.

        Raises:
            DataError: naming the sample that cannot be embedded, or the option that cannot be.
        """
        options = EncodeOptions(
            sensors=sensors, patch_size=patch_size, centre=centre, pooling=pooling, truncate_dim=truncate_dim,
            precision=precision, dtype=dtype, tokens_per_batch=tokens_per_batch,
        )  # fmt: skip
        options.check(self.model.config)
        single = is_sample(samples)
        if is_inputs(samples):
            found = self._encode_inputs(samples, options)
        else:
            given, total = as_samples([samples] if single else samples)
            found = []
            with tqdm(total=total, unit="samples", disable=not progress) as bar:
                for chunk in chunks(check_usable(sample, n, sensors) for n, sample in enumerate(given)):
                    found += self._encode_chunk(chunk, options)
                    bar.update(len(chunk))
        if pooling == "dense":
            return found[0] if single else found
        vectors = np.stack(found) if found else np.zeros((0, options.dim(self.model.config)), np.float32)
        parts = quantise(vectors) if precision == "int8" else (vectors,)
        parts = tuple(part[0] for part in parts) if single else parts
        return parts if precision == "int8" else parts[0]

    def _encode_chunk(self, samples: list[Sample], options: EncodeOptions) -> list[np.ndarray]:
        """Samples in memory -> embeddings (D,) or dense features, by buckets of one shape, which need no padding."""
        buckets = defaultdict(list)
        for row, sample in enumerate(samples):
            shapes = [np.shape(sample[s]) for s in options.sensors or SENSORS if sample.get(s) is not None]
            dates = tuple(
                0 if sample.get(s) is None or s not in (options.sensors or SENSORS) else len(sample[s]) for s in SENSORS
            )
            buckets[dates, shapes[0][2:]].append(row)
        out = [np.empty(0)] * len(samples)
        for (dates, size), rows in buckets.items():
            p = self._patch_size(size, options)
            count = self._batch_size(sum(dates), size, p, options)
            for start in range(0, len(rows), count):
                part = rows[start : start + count]
                try:
                    inputs = self.processor([samples[row] for row in part], sensors=options.sensors)
                except ValueError as error:
                    raise DataError(str(error)) from error
                for row, vector in zip(part, self._forward(inputs, size, p, options), strict=True):
                    out[row] = vector
        return out

    def _encode_inputs(self, inputs: Mapping, options: EncodeOptions) -> list[np.ndarray]:
        """A batch of the processor, of any length -> embeddings (D,) or dense features."""
        unwanted = tuple(f"{s}_" for s in SENSORS if s not in (options.sensors or SENSORS))
        inputs = {k: torch.as_tensor(v) for k, v in inputs.items() if v is not None and not k.startswith(unwanted)}
        values = [inputs[f"{s}_values"] for s in SENSORS if f"{s}_values" in inputs]
        if not values or any(x.ndim != 5 for x in values):
            shapes = {k: tuple(v.shape) for k, v in inputs.items()}
            wanted = " or ".join(f"{s}_values" for s in options.sensors or SENSORS)
            raise DataError(f"inputs must hold {wanted} of shape (N, T, bands, H, W), found {shapes}")
        unknown = sorted(set(inputs) - set(self.processor.model_input_names))
        if unknown:
            raise DataError(f"inputs hold {unknown[0]!r}, which the model does not know")
        total, size = len(values[0]), tuple(values[0].shape[3:])
        lengths = {key: len(value) for key, value in inputs.items() if value.ndim == 0 or len(value) != total}
        if lengths:
            raise DataError(f"inputs must all hold {total} samples, found {lengths}")
        p = self._patch_size(size, options)
        count, found = self._batch_size(sum(x.shape[1] for x in values), size, p, options), []
        for start in range(0, total, count):
            try:
                found += self._forward({k: v[start : start + count] for k, v in inputs.items()}, size, p, options)
            except (ValueError, TypeError) as error:
                raise DataError(f"inputs {start} to {min(start + count, total) - 1}: {error}") from error
        return found

    def _patch_size(self, size: tuple[int, int], options: EncodeOptions) -> int:
        return int(options.patch_size or min(default_patch_size(*size), 2 * self.model.config.patch_size))

    def _batch_size(self, dates: int, size: tuple[int, int], p: int, options: EncodeOptions) -> int:
        return max(1, options.tokens_per_batch // max(1, dates * -(-size[0] // p) * -(-size[1] // p)))

    @torch.inference_mode()
    def _forward(self, inputs: Mapping, size: tuple[int, int], p: int, options: EncodeOptions) -> list[np.ndarray]:
        """Inputs of one batch (B, ...) -> B embeddings (D,), or dense features (rows, columns, hidden size)."""
        config, bfloat16 = self.model.config, options.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            outputs = self.model(**{key: value.to(self.device) for key, value in inputs.items()}, patch_size=p)
        centre = self.model.embedding_centre.float()
        if options.pooling == "dense":
            dense = CropLEMModel.dense_features(outputs).float()
            if options.centre:
                dense = dense - centre[: config.hidden_size]
            # Patches at the edges that no sample of the batch has are cut off there.
            missing = [-(-side // p) - found for side, found in zip(size, dense.shape[1:3], strict=True)]
            dense = torch.nn.functional.pad(dense, (0, 0, 0, missing[1], 0, missing[0]), value=float("nan"))
            return list(dense.cpu().numpy())
        pooled = outputs.pooler_output
        if options.pooled(config) == "mean_std" and config.pooling == "mean":
            tokens, mask, sensor = outputs.last_hidden_state, outputs.token_mask, outputs.token_index[..., 0]
            pooled = pool_sensors(tokens, mask, sensor, spread=True)
        pooled = pooled[:, : options.full_dim(config)].float()
        if options.centre:
            pooled = pooled - centre[: pooled.shape[1]]
        return list(pooled[:, : options.dim(config)].cpu().numpy())

    def info(self, unit: str, **options) -> dict:
        """What an embeddings table must say of how its vectors were made.

        Args:
            unit: what an embedding is of, such as "patch", "field" or "series".
            options: as in `encode`.

        Raises:
            DataError: an option that cannot be.
        """
        options = EncodeOptions(**options)
        options.check(self.model.config)
        if options.pooling == "dense":
            raise DataError("a table holds one vector for each item; pooling 'dense' is for `encode`")
        processor = {k: v for k, v in self.processor.to_dict().items() if k not in ("auto_map", "processor_class")}
        return {
            "model": self.name,
            "weights_hash": weights_hash(self.model),
            "processor": processor,
            "unit": unit,
            "library_version": __version__,
        } | options.info(self.model.config)

    def embed_source(
        self,
        source,
        out: str | os.PathLike,
        *,
        progress: bool = True,
        rank: int = 0,
        ranks: int = 1,
        overwrite: bool = False,
        **options,
    ) -> EmbeddingsTable | None:
        """Embed every item of a source into an embeddings table, resuming where an earlier call was cut off.

        Items that cannot be read are skipped and listed in `OUT.skipped.csv`; no other item is lost. For tables larger
        than memory, or for a longer wait for other processes, see `croplem_hf.export.export_source`.

        Args:
            source: as `croplem_hf.open_source` gives: `ids`, `kind`, `unit` and items by number.
            out: Parquet file to write, under its name only when it is whole; replaces a table of the same source.
            progress: show a bar on stderr.
            rank, ranks: number of this process and of all that share the work, which all make this call.
            overwrite: replace a finished table of another source too.
            options: as in `encode`.

        Returns:
            The table; None on other ranks than 0.

        Raises:
            DataError: not a single item could be embedded, something else than an embeddings table, or one of another
                source, lies at `out`, it cannot be written, or an option that cannot be.
            CheckpointError: an unfinished table of other settings lies at `out`, another run writes it, or another
                process gave up.
        """
        done = export_source(
            self, source, out, progress=progress, rank=rank, ranks=ranks, overwrite=overwrite, **options
        )
        return None if done is None else read_table(out)


def _load(folder: str) -> tuple[CropLEMModel, CropLEMImageProcessor]:
    """Encoder and processor of a folder; refused where transformers would go on with random weights."""
    try:
        kind = CropLEMConfig.get_config_dict(folder)[0].get("model_type")
        if kind != CropLEMConfig.model_type:
            raise ValueError(f"its model_type is {kind!r}, expected {CropLEMConfig.model_type!r}")
        model, report = CropLEMModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
        bad = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
        bad += [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
        if bad:
            raise ValueError(f"weights are missing, not finite or do not fit its configuration, such as {min(bad)}")
        return model, CropLEMImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise CheckpointError(f"{folder}: cannot be used as a checkpoint ({_sentence(error)})") from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0]


__all__ = ["Embedder", "default_patch_size", "weights_hash"]
