"""What `Embedder.encode` takes, brought to samples or to inputs of the model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized

import numpy as np

from .data.sample import Sample
from .errors import DataError
from .sensors import SENSORS

# Samples in memory at once: so many, or those that hold so many values (all bands and dates; 256 MB as float32).
# Batches never cross such a chunk, and each is a part of an unfinished table: a resumed run repeats the same batches.
CHUNK = 512
CHUNK_VALUES = 2**26


def is_inputs(samples: object) -> bool:
    """Whether this is a batch as `CropLEMImageProcessor` makes it."""
    return isinstance(samples, Mapping) and any(f"{s}_values" in samples for s in SENSORS)


def is_sample(samples: object) -> bool:
    """Whether this is one sample, or one row of shards, and no batch."""
    return isinstance(samples, Mapping) and not is_inputs(samples) and not _is_arrays(samples)


def as_samples(samples: object) -> tuple[Iterator[Sample], int | None]:
    """Anything that holds samples -> the samples one by one, and how many, where that is known.

    Args:
        samples: a source (`croplem_hf.open_source`), a `datasets.Dataset` or `IterableDataset`, an iterable of samples
            or of rows of shards, or a dict of arrays (see `Embedder.encode`).

    Raises:
        DataError: nothing of that.
    """
    if isinstance(samples, Mapping):
        return _array_samples(samples), _length(samples)
    if hasattr(samples, "ids") and hasattr(samples, "kind"):
        return (samples[k] for k in range(len(samples))), len(samples)
    if hasattr(samples, "with_format") and hasattr(samples, "features"):
        # Any other format of `datasets` changes types, such as uint16 into int64.
        samples = samples.with_format(None)
    if isinstance(samples, str) or hasattr(samples, "__fspath__"):
        raise DataError(f"samples must be samples, not the name of a file; open_source({str(samples)!r}) gives them")
    if not isinstance(samples, Iterable):
        raise DataError(f"samples must be a sample or an iterable of samples, found {type(samples).__name__}")
    return map(_unpacked, samples), len(samples) if isinstance(samples, Sized) else None


def _unpacked(sample: object) -> Sample:
    """A row of shards as a sample; anything else as it is."""
    if isinstance(sample, Mapping) and any(f"{s}_codec" in sample for s in SENSORS):
        from .data.shards import row_sample

        return row_sample(sample)
    return sample


def _is_arrays(samples: Mapping) -> bool:
    return any(samples.get(s) is not None and np.ndim(samples[s]) == 5 for s in SENSORS)


def _length(samples: Mapping) -> int:
    lengths = {s: len(samples[s]) for s in SENSORS if samples.get(s) is not None}
    if len(set(lengths.values())) > 1:
        raise DataError(f"s1 and s2 must hold equally many samples, found {lengths}")
    return next(iter(lengths.values()))


def _array_samples(arrays: Mapping) -> Iterator[Sample]:
    """Samples that are views of arrays with a first axis of N."""
    count = _length(arrays)
    names = arrays.get("id")
    for n in range(count):
        sample = {"id": f"sample {n}" if names is None else names[n]}
        for key, value in arrays.items():
            if key == "id" or value is None:
                continue
            shared = isinstance(value, str) or np.ndim(value) == 0 or (key.endswith("_dates") and _are_texts(value))
            if not shared and len(value) != count:
                raise DataError(f"{key} holds {len(value)} samples, expected {count}")
            sample[key] = value if shared else value[n]
        yield sample


def _are_texts(dates: Sequence) -> bool:
    """Whether these are the dates of one sample, which then are those of all."""
    return len(dates) > 0 and (isinstance(dates[0], str) or np.ndim(dates[0]) == 0)


def chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Samples some at a time: `CHUNK` of them, or fewer that hold `CHUNK_VALUES`."""
    chunk, values = [], 0
    for sample in samples:
        chunk.append(sample)
        values += size_of(sample)
        if len(chunk) == CHUNK or values >= CHUNK_VALUES:
            yield chunk
            chunk, values = [], 0
    if chunk:
        yield chunk


def size_of(sample: Sample) -> int:
    """Values of a sample, all bands, dates and pixels."""
    return sum(np.size(sample[s]) for s in SENSORS if sample.get(s) is not None)


def check_usable(sample: Sample, number: int, sensors: Sequence[str] | None) -> Sample:
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


__all__ = ["as_samples", "check_usable", "chunks", "is_inputs", "is_sample", "size_of"]
