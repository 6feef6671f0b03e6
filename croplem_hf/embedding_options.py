"""How embeddings are made: the options of `Embedder.encode`, checked, and what a table tells of them."""

import dataclasses
import numbers
from collections.abc import Sequence

from .compact import PRECISIONS
from .errors import DataError
from .model import CropLEMConfig
from .sensors import SENSORS

POOLING = {
    "mean": "mean of tokens within sensors, then over sensors",
    "mean_std": "mean and standard deviation of tokens within sensors, then mean over sensors",
}
"""What a table says of a pooling."""

DTYPES = ("float32", "bfloat16")
# Larger batches gain nothing on a CPU and a few per cent on a GPU.
TOKENS_PER_BATCH = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """The options of `Embedder.encode`, which describes them."""

    sensors: Sequence[str] | None = None
    patch_size: int | None = None
    centre: bool = True
    pooling: str = "default"
    truncate_dim: int | None = None
    precision: str = "float32"
    dtype: str = "float32"
    tokens_per_batch: int = TOKENS_PER_BATCH

    def check(self, config: CropLEMConfig) -> None:
        """Refuse what a model of this configuration cannot do.

        Raises:
            DataError: naming the option.
        """
        sensors = self.sensors
        if sensors is not None and (isinstance(sensors, str) or not sensors or set(sensors) - set(SENSORS)):
            raise DataError(f"sensors must be a list of some of {SENSORS}, or None for both; found {sensors!r}")
        dense = self.pooling == "dense"
        ranges = {"patch_size": 2 * config.patch_size, "truncate_dim": self.full_dim(config), "tokens_per_batch": None}
        for name, most in ranges.items():
            value, optional = getattr(self, name), name != "tokens_per_batch"
            if value is None and optional:
                continue
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not whole or not 1 <= value <= (value if most is None else most):
                upto = "of at least 1" if most is None else f"from 1 to {most}"
                raise DataError(f"{name} must be a whole number {upto}{', or None' * optional}; found {value!r}")
        choices = {"pooling": ("default", *POOLING, "dense"), "precision": PRECISIONS, "dtype": DTYPES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"{name} must be one of {', '.join(allowed)}; found {getattr(self, name)!r}")
        if dense and (self.truncate_dim is not None or self.precision != "float32"):
            raise DataError("pooling 'dense' goes with neither truncate_dim nor precision: leave them out")
        if self.pooling == "mean_std" and config.pooling == "mean" and self.centre:
            raise DataError("the checkpoint holds no centre for pooling 'mean_std'; say centre=False, or take another")

    def full_dim(self, config: CropLEMConfig) -> int:
        """Numbers of an embedding before truncation."""
        return config.hidden_size * (2 if self.pooled(config) == "mean_std" else 1)

    def dim(self, config: CropLEMConfig) -> int:
        """Numbers of an embedding."""
        return self.truncated(config) or self.full_dim(config)

    def truncated(self, config: CropLEMConfig) -> int | None:
        """Numbers that are left where some are taken away."""
        return None if self.truncate_dim in (None, self.full_dim(config)) else int(self.truncate_dim)

    def pooled(self, config: CropLEMConfig) -> str:
        """The pooling that "default" stands for."""
        return config.pooling if self.pooling == "default" else self.pooling

    def info(self, config: CropLEMConfig) -> dict:
        """What a table tells of them."""
        return {
            # Both sensors asked for by name are no other setting than both by default.
            "sensors": None if set(self.sensors or SENSORS) == set(SENSORS) else sorted(self.sensors),
            "patch_size": "auto" if self.patch_size is None else int(self.patch_size),
            "pooling": POOLING[self.pooled(config)],
            "centred": self.centre,
            "truncate_dim": self.truncated(config),
            "precision": self.precision,
            "dtype": self.dtype,
            "dim": self.dim(config),
        }


def pooling_name(description: str | None) -> str:
    """The pooling that a table describes; "default" for what no pooling of ours is described by."""
    return next((name for name, text in POOLING.items() if text == description), "default")


__all__ = ["DTYPES", "EncodeOptions", "POOLING", "TOKENS_PER_BATCH", "pooling_name"]
