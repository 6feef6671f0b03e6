"""The exceptions of the library: catch `CropLEMError` for all of them.

    CropLEMError
      DataError         a file, table or sample that cannot be used as it is
      CheckpointError   a model, index or table that cannot be loaded, or belongs to another model
      HubError          the Hub refused a push, or failed

A message says what was found, where (file, band, id), and what to do.
"""


class CropLEMError(Exception):
    """Base class of every error that the library raises on purpose."""


class DataError(CropLEMError, ValueError):
    """A file, table or sample that cannot be used as it is."""


class CheckpointError(CropLEMError, OSError):
    """A checkpoint, embeddings table or index that cannot be loaded, or that belongs to another model."""


class HubError(CropLEMError, OSError):
    """The Hub refused a push, or failed."""


__all__ = ["CheckpointError", "CropLEMError", "DataError", "HubError"]
