"""Samples -> embeddings: one `encode` for arrays, and one `embed_source` that streams to the embeddings table."""

import csv
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from . import __version__
from .data.sample import METADATA, Sample
from .errors import CropLEMError, DataError
from .model import CropLEMImageProcessor, CropLEMModel
from .resolver import DEFAULT_CHECKPOINT, hook
from .table import EmbeddingsTable, TableWriter, read_table

logger = logging.getLogger(__name__)

# Larger batches gain nothing on a CPU and a few per cent on a GPU.
TOKENS_PER_BATCH = 8192
# Samples that are read before any is embedded; batches never cross such a chunk, so a resumed run repeats them.
CHUNK = 512
# No chunk holds more pixels (all bands and dates) than this, about 1 GB of float32.
CHUNK_VALUES = 2**28


def default_patch_size(height: int, width: int) -> int:
    """Patch size for an image of this size in pixels: 1 for series and tiny fields, 16 for scenes of 128 and more."""
    side = min(height, width)
    return next(p for p, least in ((16, 128), (8, 32), (4, 16), (2, 8), (1, 0)) if side >= least)


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of a model's weights: the same however they were stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
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
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
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
            CheckpointError: there is no such checkpoint, or it cannot be had.
        """
        folder, rest = hook(str(name), kwargs)
        if rest:
            raise TypeError(f"unknown arguments {sorted(rest)}")
        model = CropLEMModel.from_pretrained(folder, dtype=torch.float32)
        return cls(model, CropLEMImageProcessor.from_pretrained(folder), name=str(name), device=device)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.model.config.hidden_size

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
        out = [np.zeros((0, self.dim), np.float32)]
        bar = tqdm(unit="samples", disable=not progress)
        for chunk in _chunks(samples):
            for sample in chunk:
                _check_usable(sample, sensors)
            out.append(self._encode_chunk(chunk, sensors, patch_size, centre))
            bar.update(len(chunk))
        bar.close()
        return np.concatenate(out)

    def _encode_chunk(
        self, samples: list[Sample], sensors: Sequence[str] | None, patch_size: int | None, centre: bool
    ) -> np.ndarray:
        """Samples in memory -> (N, D), by buckets of one shape, which need no padding."""
        buckets = defaultdict(list)
        for row, sample in enumerate(samples):
            s1, s2 = (sample[s] if sensors is None or s in sensors else None for s in ("s1", "s2"))
            height, width = (s1 if s1 is not None else s2).shape[2:]
            p = patch_size or default_patch_size(height, width)
            dates = tuple(0 if x is None else len(x) for x in (s1, s2))
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
            "sensors": None if sensors is None else sorted(sensors),
            "patch_size": patch_size or "auto",
            "pooling": "mean of tokens within sensors, then over sensors",
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
            source: as `croplem_hf.open_source` gives: `ids`, `unit` and items by number.
            out: Parquet file to write, under its name only when it is whole.
            sensors, patch_size, centre: as in `encode`.
            progress: show a bar on stderr.

        Raises:
            DataError: not a single item could be embedded.
            CheckpointError: an unfinished table of other settings lies at `out`.
        """
        out = Path(out)
        writer = TableWriter(
            out, self.info(source.unit, sensors=sensors, patch_size=patch_size, centre=centre), source.ids
        )
        skipped_file = out.with_name(out.name + ".skipped.csv")
        bar = tqdm(total=len(source), unit="samples", disable=not progress, desc=f"embedding {source.kind}")
        for start, stop in writer.chunks(CHUNK):
            chunk, done, skipped = [], [], []
            values = 0

            def flush(chunk=chunk, done=done):
                if chunk:
                    done.append((self._encode_chunk(chunk, sensors, patch_size, centre), [_row(s) for s in chunk]))
                    chunk.clear()

            for number in range(start, stop):
                try:
                    sample = source[number]
                    _check_usable(sample, sensors)
                except CropLEMError as error:
                    skipped.append((source.ids[number], str(error)))
                    continue
                chunk.append(sample)
                values += sum(np.size(sample[s]) for s in ("s1", "s2") if sample[s] is not None)
                if values > CHUNK_VALUES:
                    flush()
                    values = 0
            flush()
            rows = [row for _, part in done for row in part]
            writer.add_chunk(start, np.concatenate([v for v, _ in done]) if done else None, rows, skipped)
            bar.update(stop - start)
        bar.close()
        skipped = writer.skipped()
        if len(skipped) == len(source):
            writer.discard()
            raise DataError(f"none of {len(source)} items could be embedded; the first: {skipped[0][1]}")
        writer.finish()
        skipped_file.unlink(missing_ok=True)
        if skipped:
            partial = skipped_file.with_name(skipped_file.name + ".tmp")
            with open(partial, "w", newline="") as handle:
                csv.writer(handle).writerows([("id", "reason"), *skipped])
            os.replace(partial, skipped_file)
            logger.warning("%d of %d items skipped, listed in %s", len(skipped), len(source), skipped_file)
        return read_table(out)


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    samples = iter(samples)
    while chunk := list(islice(samples, CHUNK)):
        yield chunk


def _check_usable(sample: Sample, sensors: Sequence[str] | None) -> None:
    name = sample.get("id")
    present = [s for s in ("s1", "s2") if sample.get(s) is not None and np.any(sample.get(f"{s}_valid", True))]
    if not set(present) & set(sensors or ("s1", "s2")):
        raise DataError(f"{name}: nothing valid in {' or '.join(sensors or ('s1', 's2'))}")


def _row(sample: Sample) -> dict:
    """Metadata of a sample that become columns: plain values, the dominant land cover, and what was there to embed."""
    row = {"id": sample["id"], "gsd": sample["gsd"]}
    row |= {key: sample.get(key) for key in METADATA}
    known = {"id", "gsd", "lc", *row, *(k for k in sample if k.startswith(("s1", "s2")))}
    row |= {k: v for k, v in sample.items() if k not in known and isinstance(v, (str, int, float, bool, np.generic))}
    row["transform"] = None if sample.get("transform") is None else [float(v) for v in sample["transform"]]
    row["sensors"] = "+".join(s for s in ("s1", "s2") if sample[s] is not None)
    if sample.get("lc") is not None:
        codes, counts = np.unique(sample["lc"][0], return_counts=True)
        row["lc"] = int(codes[counts.argmax()])
        row["lc_share"] = float(counts.max() / counts.sum())
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}


__all__ = ["Embedder", "default_patch_size", "weights_hash"]
