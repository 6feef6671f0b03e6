"""Maps of scenes of any size: the classes of a head, and dense embeddings."""

from .basis import Basis
from .classes import NODATA, map_scene
from .dense import basis_path, map_embeddings
from .settings import MapSettings, map_settings

__all__ = ["NODATA", "Basis", "MapSettings", "basis_path", "map_embeddings", "map_scene", "map_settings"]
