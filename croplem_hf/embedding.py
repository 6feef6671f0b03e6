"""Samples -> embeddings: one `encode` for arrays, and one `embed_source` that streams to the embeddings table."""

import csv
import hashlib
import logging
import numbers
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm

from . import __version__
from .data.sample import METADATA, SENSOR_KEYS, Sample
from .errors import CheckpointError, CropLEMError, DataError
from .model import CropLEMConfig, CropLEMImageProcessor, CropLEMModel
from .resolver import DEFAULT_CHECKPOINT, hook
from .sensors import SENSORS
from .table import EmbeddingsTable, TableWriter, read_table

logger = logging.getLogger(__name__)

# Larger batches gain nothing on a CPU and a few per cent on a GPU.
TOKENS_PER_BATCH = 8192
# Samples in memory at once: so many, or those that hold so many values (all bands and dates; 256 MB as float32).
# Batches never cross such a chunk, and each is a part of an unfinished table: a resumed run repeats the same batches.
CHUNK = 512
CHUNK_VALUES = 2**26
POOLING = {
    "mean": "mean of tokens within sensors, then over sensors",
    "mean_std": "mean and standard deviation of tokens within sensors, then mean over sensors",
}
# What a reader was told or found out about its data.
SOURCE_OPTIONS = ("kind", "licence", "s1_units", "s2_units", "s2_offset", "s2_level")


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
        """Length of an embedding."""
        return self.model.config.embedding_size

    def encode(
        self,
        samples: Sample | Iterable[Sample],
        *,
        sensors: Sequence[str] | None = None,
        patch_size: int | None = None,
        centre: bool = True,
        progress: bool = False,
    ) -> np.ndarray:
        """Embed samples. Each embedding depends on its own sample alone, whatever else is in the batch.

        Args:
            samples: one sample or any iterable of samples; see `croplem_hf.data.sample`.
            sensors: use only these, of "s1" and "s2"; None for whatever a sample holds.
            patch_size: pixels a patch; None chooses by the size of the sample (`default_patch_size`).
            centre: subtract the mean embedding of the pretraining data, stored with the checkpoint. Raw embeddings
                of very different places are nearly parallel, so that cosines tell little.
            progress: show a bar on stderr.

        Returns:
            float32 (N, D); (D,) for a single sample.

        Raises:
            DataError: naming the sample that cannot be embedded.
        """
        if isinstance(samples, Mapping):
            return self.encode([samples], sensors=sensors, patch_size=patch_size, centre=centre)[0]
        self._check_options(sensors, patch_size)
        out = [np.zeros((0, self.dim), np.float32)]
        total = len(samples) if isinstance(samples, Sized) else None
        with tqdm(total=total, unit="samples", disable=not progress) as bar:
            for chunk in _chunks(_usable(sample, n, sensors) for n, sample in enumerate(samples)):
                out.append(self._encode_chunk(chunk, sensors, patch_size, centre))
                bar.update(len(chunk))
        return np.concatenate(out)

    def _check_options(self, sensors: Sequence[str] | None, patch_size: int | None) -> None:
        if sensors is not None and (isinstance(sensors, str) or not sensors or set(sensors) - set(SENSORS)):
            raise DataError(f"sensors must be a list of some of {SENSORS}, or None for both; found {sensors!r}")
        largest = 2 * self.model.config.patch_size
        if patch_size is not None and not (isinstance(patch_size, numbers.Integral) and 1 <= patch_size <= largest):
            raise DataError(f"patch_size must be a whole number from 1 to {largest}, or None; found {patch_size!r}")

    def _encode_chunk(
        self, samples: list[Sample], sensors: Sequence[str] | None, patch_size: int | None, centre: bool
    ) -> np.ndarray:
        """Samples in memory -> (N, D), by buckets of one shape, which need no padding."""
        buckets = defaultdict(list)
        for row, sample in enumerate(samples):
            arrays = [sample.get(s) if s in (sensors or SENSORS) else None for s in SENSORS]
            height, width = next(x for x in arrays if x is not None).shape[2:]
            p = int(patch_size or min(default_patch_size(height, width), 2 * self.model.config.patch_size))
            dates = tuple(0 if x is None else len(x) for x in arrays)
            buckets[dates, height, width, p].append(row)
        out = np.empty((len(samples), self.dim), np.float32)
        for (dates, height, width, p), rows in buckets.items():
            tokens = sum(dates) * -(-height // p) * -(-width // p)
            size = max(1, TOKENS_PER_BATCH // tokens)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                try:
                    inputs = self.processor([samples[row] for row in part], sensors=sensors)
                except ValueError as error:
                    raise DataError(str(error)) from error
                with torch.inference_mode():
                    pooled = self.model(**inputs.to(self.device), patch_size=p).pooler_output.float()
                    if centre:
                        pooled = pooled - self.model.embedding_centre.float()
                out[part] = pooled.cpu().numpy()
        return out

    def info(
        self, unit: str, *, sensors: Sequence[str] | None = None, patch_size: int | None = None, centre: bool = True
    ) -> dict:
        """What an embeddings table must say of how its vectors were made."""
        processor = {k: v for k, v in self.processor.to_dict().items() if k not in ("auto_map", "processor_class")}
        return {
            "model": self.name,
            "weights_hash": weights_hash(self.model),
            "processor": processor,
            # Both sensors asked for by name are no other setting than both by default.
            "sensors": None if set(sensors or SENSORS) == set(SENSORS) else sorted(sensors),
            "patch_size": "auto" if patch_size is None else int(patch_size),
            "pooling": POOLING[self.model.config.pooling],
            "centred": centre,
            "unit": unit,
            "library_version": __version__,
            "dim": self.dim,
        }

    def embed_source(
        self,
        source,
        out: str | os.PathLike,
        *,
        sensors: Sequence[str] | None = None,
        patch_size: int | None = None,
        centre: bool = True,
        progress: bool = True,
    ) -> EmbeddingsTable:
        """Embed every item of a source into an embeddings table, resuming where an earlier call was cut off.

        Items that cannot be read are skipped and listed in `OUT.skipped.csv`; no other item is lost.

        Args:
            source: as `croplem_hf.open_source` gives: `ids`, `kind`, `unit` and items by number.
            out: Parquet file to write, under its name only when it is whole; replaces an embeddings table.
            sensors, patch_size, centre: as in `encode`.
            progress: show a bar on stderr.

        Raises:
            DataError: not a single item could be embedded, or something else than an embeddings table lies at `out`.
            CheckpointError: an unfinished table of other settings lies at `out`.
        """
        self._check_options(sensors, patch_size)
        out = Path(out)
        info = self.info(source.unit, sensors=sensors, patch_size=patch_size, centre=centre)
        info["source"] = {key: getattr(source, key) for key in SOURCE_OPTIONS if hasattr(source, key)}
        writer = TableWriter(out, info, source.ids)
        row = 0
        with tqdm(total=len(source), unit="samples", disable=not progress, desc=f"embedding {source.kind}") as bar:
            while row < len(source):
                stop = writer.finished(row)
                if stop is None:
                    samples, skipped, stop = _read_chunk(source, row, sensors)
                    vectors = self._encode_chunk(samples, sensors, patch_size, centre)
                    writer.add_part(row, stop, vectors, [_row(sample, sensors) for sample in samples], skipped)
                bar.update(stop - row)
                row = stop
        skipped = writer.skipped()
        skipped_file = out.with_name(out.name + ".skipped.csv")
        _write_skipped(skipped_file, skipped)
        if len(skipped) == len(source):
            writer.discard()
            raise DataError(
                f"none of {len(source)} items could be embedded, see {skipped_file}; the first: {skipped[0][1]}"
                if skipped
                else "the source holds no items"
            )
        writer.finish()
        if skipped:
            logger.warning("%d of %d items skipped, listed in %s", len(skipped), len(source), skipped_file)
        return read_table(out)


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


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    chunk, values = [], 0
    for sample in samples:
        chunk.append(sample)
        values += _size(sample)
        if len(chunk) == CHUNK or values >= CHUNK_VALUES:
            yield chunk
            chunk, values = [], 0
    if chunk:
        yield chunk


def _read_chunk(source, start: int, sensors: Sequence[str] | None) -> tuple[list[Sample], list[tuple[str, str]], int]:
    """Samples of a source from `start` on; (id, reason) of those that cannot be used; where the next chunk begins."""
    samples, skipped, values, number = [], [], 0, start
    while number < min(start + CHUNK, len(source)) and values < CHUNK_VALUES:
        try:
            samples.append(_usable(source[number], number, sensors))
            values += _size(samples[-1])
        except CropLEMError as error:
            skipped.append((source.ids[number], str(error)))
        number += 1
    return samples, skipped, number


def _size(sample: Sample) -> int:
    return sum(np.size(sample[s]) for s in SENSORS if sample.get(s) is not None)


def _usable(sample: Sample, number: int, sensors: Sequence[str] | None) -> Sample:
    """The sample itself, if it is one and has something to embed; the processor checks the rest."""
    if not isinstance(sample, Mapping):
        raise DataError(f"sample {number}: must be a dict as make_sample() builds it, found {type(sample).__name__}")
    name = sample.get("id") or f"sample {number}"
    wanted = [s for s in sensors or SENSORS if sample.get(s) is not None]
    for s in wanted:
        if np.ndim(sample[s]) != 4 or 0 in np.shape(sample[s]):
            raise DataError(f"{name}: {s} must have shape (T, bands, H, W), found {np.shape(sample[s])}")
    if not any(sample.get(f"{s}_valid") is None or np.any(sample[f"{s}_valid"]) for s in wanted):
        raise DataError(f"{name}: nothing valid in {' or '.join(sensors or SENSORS)}")
    return sample


def _row(sample: Sample, sensors: Sequence[str] | None) -> dict:
    """Metadata of a sample that become columns: plain values, the dominant land cover, and what was embedded."""
    row = {"id": sample["id"]} | {key: sample.get(key) for key in METADATA}
    taken = {*row, *SENSOR_KEYS, "lc"}
    row |= {k: v for k, v in sample.items() if k not in taken and isinstance(v, str | int | float | np.generic | None)}
    row["transform"] = None if sample.get("transform") is None else [float(v) for v in sample["transform"]]
    used = [s for s in SENSORS if s in (sensors or SENSORS) and sample[s] is not None]
    row["sensors"] = "+".join(used)
    row |= {"s1_kind": sample.get("s1_kind"), "s2_level": sample.get("s2_level") if "s2" in used else None}
    row["height"], row["width"] = sample[used[0]].shape[2:]
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}


def _write_skipped(path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """List of (id, reason); nothing skipped removes an older list."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w", newline="") as handle:
        csv.writer(handle).writerows([("id", "reason"), *skipped])
    os.replace(partial, path)


__all__ = ["Embedder", "default_patch_size", "weights_hash"]
