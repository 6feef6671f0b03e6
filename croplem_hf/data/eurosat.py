"""EuroSAT, multi-spectral (Helber et al. 2019, doi 10.1109/JSTARS.2019.2918242): 27,000 optical patches of one land use
each, 64 x 64 pixels of 10 m, level L1C, in `<Class>/<Class>_<n>.tif`."""

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from ..errors import DataError
from ..sensors import S2_BANDS, harmonise_s2
from .files import entry_kind
from .geotiff import GDAL_OPTIONS, read_geotiff, reason
from .plan import Layout, first_size
from .sample import Sample, make_sample
from .workers import available_cpus

logger = logging.getLogger(__name__)

CLASSES = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
           "Residential", "River", "SeaLake")  # fmt: skip
"""The ten classes of land use, the names of their folders."""

CROPLAND_CLASSES = frozenset({"AnnualCrop", "PermanentCrop"})
"""Cropland as FAO defines it: arable land and permanent crops. Pasture is grassland, grazed and not tilled: FAO's
permanent meadows and pastures, which are agricultural land and no cropland."""

FILE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""Order of the bands in the files: B8A last."""

DATE = "2017-07-01"
"""Stand-in for the date, which EuroSAT does not tell; such samples have `date_known` False."""

SPLITS = ("train", "validation", "test")
BLOCK_DEGREES = 0.5
_SHARES = (0.70, 0.85)
# Files of each class that are looked at for the order of bands; damaged ones are passed over.
_LOOKS, _TRIES = 2, 8
_ORDERS = {"eurosat": FILE_BANDS, "sen12ms": S2_BANDS}
_B10 = {name: bands.index("B10") for name, bands in _ORDERS.items()}
_NAME = re.compile(rf"^({'|'.join(CLASSES)})_(\d+)\.tiff?$", re.IGNORECASE)
_LAYOUT = "expected the multi-spectral edition: files such as AnnualCrop/AnnualCrop_1.tif of 13 bands"
_DEPTH = 8


class EuroSATFolder:
    """The patches of EuroSAT as samples of optics on one stand-in date, with the class in `land_use`.

    Further metadata of a sample: `cropland` (1 for `CROPLAND_CLASSES`, else 0), `date_known` False, `split`, and the
    place where the file has one. EuroSAT has no official split of this edition: `split` is ours, by the place.

    Args:
        root: the folder of the class folders, or one with nothing but it inside.
        sensors: None or "s2" alone; EuroSAT has no radar.
        split: "train", "validation" or "test" to read only these (see `split_of`); all headers are read once for it.
        band_order: "eurosat" (B8A last), "sen12ms" (B8A after B08, as in some copies), or "auto": by the place of B10,
            which the atmosphere makes nearly black, in two files of each class.
        s2_units: "dn", "reflectance" or "auto" (see `harmonise_s2`).
        s2_offset: 0, 1000 or "auto" (see `harmonise_s2`).

    Attributes:
        ids: such as "AnnualCrop_1", by class and number.
        band_order: "eurosat" or "sen12ms".

    Raises:
        DataError: no such folder, no patch in it, none of the split, or an order of bands that does not show.
    """

    kind = "eurosat"
    unit = "patch"
    seasonal = False

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        sensors: Sequence[str] | None = None,
        split: str | None = None,
        band_order: str = "auto",
        s2_units: str = "auto",
        s2_offset: int | str = "auto",
    ):
        if sensors is not None and tuple(sensors) != ("s2",):
            raise DataError(f"{root}: EuroSAT is optics alone: sensors must be None or ('s2',), found {sensors!r}")
        if split not in (None, *SPLITS):
            raise DataError(f"{root}: split must be one of {SPLITS} or None, found {split!r}")
        if band_order not in ("auto", *_ORDERS):
            raise DataError(f"{root}: band_order must be 'auto', 'eurosat' or 'sen12ms', found {band_order!r}")
        if not Path(root).is_dir():
            raise DataError(f"{root}: no such folder")
        folders = _class_folders(Path(root))
        if not folders:
            raise DataError(f"{root}: no EuroSAT class in this folder; {_LAYOUT}")
        self.root = Path(root)
        self.sensors = ("s2",)
        self.s2_units = s2_units
        self.s2_offset = s2_offset
        self._files = _files(self.root, folders)
        self.ids = list(self._files)
        self.band_order = self._find_order() if band_order == "auto" else band_order
        self._splits: np.ndarray | None = None
        if split is not None:
            splits = self._read_splits()
            if not splits.astype(bool).any():
                raise DataError(f"{root}: no file tells its place, so that there is no split by place; leave split out")
            if unknown := int((splits == None).sum()):  # noqa: E711, of each element
                logger.warning("%s: %d patches tell no place and are in no split", root, unknown)
            self.ids = [id for id, its in zip(self.ids, splits, strict=True) if its == split]
            self._splits = splits[splits == split]
            if not self.ids:
                found = sorted(set(splits) - {None})
                raise DataError(f"{root}: no patch falls into the split {split!r}, all are in {found}")

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a folder holds class folders of EuroSAT, itself or below single folders."""
        path = Path(path)
        return path.is_dir() and bool(_class_folders(path))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`: `s2` (1, 13, H, W) in the order of `S2_BANDS`.

        Raises:
            IndexError: past the end.
            DataError: naming the file: damaged, not 13 bands, nothing valid in it, or another order of bands.
        """
        id = self.ids[i]
        path = self.path(i)
        values, info = read_geotiff(path)
        if len(values) != 13:
            hint = "; this looks like the edition in colour, which has no other bands" if len(values) == 3 else ""
            raise DataError(f"{path}: expected 13 bands, found {len(values)}{hint}; {_LAYOUT}")
        found = _order(values)
        if found not in (None, self.band_order):
            raise DataError(
                f"{path}: B10 is dark in the place of the order {found!r}, and this source has {self.band_order!r}; "
                f"take the file out, or say band_order={found!r} if all files have that order"
            )
        bands = _ORDERS[self.band_order]
        values = values[[bands.index(band) for band in S2_BANDS]]
        if values.dtype.kind == "f":
            valid = np.isfinite(values).all(axis=0) & values.any(axis=0)
        else:
            valid = values.any(axis=0)
        if info.nodata is not None:
            valid &= (values != info.nodata).any(axis=0)
        if not valid.any():
            raise DataError(f"{path}: no valid optical pixel (all 0, NaN or nodata)")
        values, note = harmonise_s2(values[None], units=self.s2_units, offset=self.s2_offset, where=str(path))
        land_use = id.rpartition("_")[0]
        return make_sample(
            id,
            gsd=info.gsd or 10.0,
            s2=values,
            s2_dates=[DATE],
            s2_valid=valid[None],
            s2_level="L1C",
            date_known=False,
            land_use=land_use,
            cropland=int(land_use in CROPLAND_CLASSES),
            split=split_of(info.lon, info.lat),
            lon=info.lon,
            lat=info.lat,
            crs=info.crs,
            transform=info.transform,
            **({"s2_correction": note} if note else {}),
        )

    def path(self, i: int) -> Path:
        """The file of sample `i`."""
        return self.root / self._files[self.ids[i]]

    def layout(self) -> Layout:
        """One optical date a patch, all of the size of the first that can be read.

        Raises:
            DataError: none of the first patches can be read.
        """
        shapes = np.zeros((len(self), 4), np.int32)
        shapes[:] = (0, 1, *first_size(self))
        return Layout(shapes)

    def columns(self) -> dict[str, np.ndarray]:
        """`land_use`, `cropland`, and `split` by the headers of the files, object arrays (N,)."""
        if self._splits is None:
            self._splits = self._read_splits()
        land_use = np.array([id.rpartition("_")[0] for id in self.ids], object)
        cropland = np.array([int(name in CROPLAND_CLASSES) for name in land_use], object)
        return {"land_use": land_use, "cropland": cropland, "split": self._splits}

    def _find_order(self) -> str:
        votes: dict[str, Path] = {}
        for name in CLASSES:
            looks = 0
            for file in [file for id, file in self._files.items() if id.startswith(f"{name}_")][:_TRIES]:
                try:
                    values, _ = read_geotiff(self.root / file, count=13)
                except DataError:
                    continue
                looks += 1
                if found := _order(values):
                    votes.setdefault(found, self.root / file)
                if looks == _LOOKS:
                    break
        if len(votes) == 1:
            return next(iter(votes))
        if votes:
            raise DataError(
                f"{self.root}: two orders of bands: {', '.join(f'{k} in {v}' for k, v in votes.items())}; separate the "
                "files, or say band_order='eurosat' (B8A last) or 'sen12ms' to have the others refused one by one"
            )
        raise DataError(
            f"{self.root}: the order of the 13 bands does not show (B10, nearly black, is neither the tenth nor the "
            f"eleventh band, or no file can be read); say band_order='eurosat' (B8A last) or 'sen12ms'. {_LAYOUT}"
        )

    def _read_splits(self) -> np.ndarray:
        """Split of each patch by the headers alone, object (N,); None where a file tells no place."""
        logger.info("%s: reading the places of %d patches", self.root, len(self))
        # Waiting for a disk on the network is most of the time there.
        with warnings.catch_warnings(), ThreadPoolExecutor(min(16, 4 * available_cpus())) as pool:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            places = list(pool.map(_centre, [self.path(i) for i in range(len(self))]))
        splits = np.full(len(self), None, object)
        by_crs: dict[str, list[int]] = {}
        for i, place in enumerate(places):
            if place is not None:
                by_crs.setdefault(place[0], []).append(i)
        for crs, rows in by_crs.items():
            lon, lat = rasterio.warp.transform(crs, "EPSG:4326", *zip(*(places[i][1:] for i in rows), strict=True))
            splits[rows] = [split_of(*place) for place in zip(lon, lat, strict=True)]
        return splits


def split_of(lon: float | None, lat: float | None) -> str | None:
    """"train" (70 %), "validation" or "test" (15 % each) of a place in degrees, None where it is not known.

    All patches of one block of `BLOCK_DEGREES` fall together, so that no two halves of a field are parted but at the
    borders of blocks; the hash of the block decides, so a place has the same split whatever else is there.
    """
    if lon is None or lat is None or not np.isfinite([lon, lat]).all():
        return None
    block = f"{int(np.floor(lon / BLOCK_DEGREES))},{int(np.floor(lat / BLOCK_DEGREES))}"
    draw = int.from_bytes(hashlib.sha256(block.encode()).digest()[:8], "big") / 2**64
    return SPLITS[sum(draw >= share for share in _SHARES)]


def _order(values: np.ndarray) -> str | None:
    """Name of the order of 13 bands by the place of B10, None where it does not show."""
    levels = np.array([np.median(band[band > 0]) if (band > 0).any() else np.nan for band in values])
    tenth, eleventh = levels[_B10["eurosat"]], levels[_B10["sen12ms"]]
    rest = np.delete(levels, [9, 10])
    others = np.median(rest[np.isfinite(rest)]) if np.isfinite(rest).any() else np.nan
    # Haze lifts all bands, so B10 is compared with the others of its file. Over water B11 may be as dark as B10.
    for name, dark, bright in (("eurosat", tenth, eleventh), ("sen12ms", eleventh, tenth)):
        if dark < 0.1 * others and bright > 0.2 * others:
            return name
    return None


def _class_folders(path: Path) -> list[Path]:
    """The class folders in `path`, or in the one folder inside it, and so on; those that hold a file of their name."""
    for _ in range(_DEPTH):
        with os.scandir(path) as entries:
            inside = [Path(e.path) for e in entries if not e.name.startswith((".", "_")) and entry_kind(e) == "folder"]
        found = [folder for folder in inside if folder.name in CLASSES and _holds_patch(folder)]
        if found or len(inside) != 1:
            return sorted(found)
        path = inside[0]
    return []


def _holds_patch(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_NAME.match(entry.name) for entry in entries)


def _files(root: Path, folders: Sequence[Path]) -> dict[str, str]:
    """Id -> path below `root`, by class and number."""
    found = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            names = [match for entry in entries if (match := _NAME.match(entry.name)) and match[1] == folder.name]
        for match in sorted(names, key=lambda match: (int(match[2]), match[2], match[0])):
            id = f"{match[1]}_{match[2]}"
            if id in found:
                raise DataError(f"the same patch twice: {root / found[id]} and {folder / match[0]}; remove one")
            found[id] = str((folder / match[0]).relative_to(root))
    return found


def _centre(path: Path) -> tuple[str, float, float] | None:
    """(crs, x, y) of a file by its header, None where it has no place or cannot be opened."""
    try:
        with rasterio.Env(**GDAL_OPTIONS), rasterio.open(path) as raster:
            if raster.crs is None:
                return None
            a, b, c, d, e, f = raster.transform[:6]
            column, row = raster.width / 2, raster.height / 2
            return raster.crs.to_string(), a * column + b * row + c, d * column + e * row + f
    except RasterioError as error:
        # The file is named again, as an error, where it is read.
        logger.info("%s: no place (%s)", path, reason(error))
        return None


__all__ = [
    "BLOCK_DEGREES", "CLASSES", "CROPLAND_CLASSES", "DATE", "EuroSATFolder", "FILE_BANDS", "SPLITS", "split_of",
]  # fmt: skip
