"""Invented fields in the layouts of Kenya CV4A (see `kenya`), to try readers, training and active learning on.

The calendars and spectra of crops are hand-set: nothing that is measured on this data holds for a real field.
"""

import csv
import os
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..errors import DataError
from ..sensors import S2_BANDS, S2_RESOLUTION_M
from .files import GENERATED
from .geotiff import write_geotiff
from .kenya_mosaic import BANDS, TILE_PLACES

LAYOUTS = ("source", "zindi", "mlhub")
DATES = (
    "20190606", "20190701", "20190706", "20190711", "20190721", "20190805", "20190815", "20190825", "20190909",
    "20190919", "20190924", "20191004", "20191103",
)  # fmt: skip
FIELD_COUNTS = (1462, 829, 98, 487, 172, 160, 78)
"""Labelled fields of each class in the published data."""
PUBLISHED_FIELDS, PUBLISHED_PIXELS = 4688, 67_557
TEST_SHARE = 1402 / PUBLISHED_FIELDS

# Surface reflectance x 10,000, bands as in `BANDS`.
_SOIL = (620, 780, 1080, 1420, 1660, 1820, 1960, 2080, 2220, 2300, 2850, 2250)
_CROP = (300, 360, 640, 400, 1020, 2750, 3450, 3600, 3850, 3900, 1900, 900)
_CLOUD = (5300, 5100, 5000, 5100, 5300, 5500, 5700, 5800, 5900, 6000, 4200, 3100)
# Days of the year of greatest green, days to half green before and after, greatest green 0..1, green that stays:
# maize of the long rains, cassava that stands for a year, beans, soybean.
_CALENDAR = {"maize": (190, 48, 42, 0.72, 0.12), "cassava": (235, 120, 120, 0.36, 0.26),
             "bean": (172, 30, 30, 0.58, 0.14), "soybean": (205, 42, 36, 0.68, 0.12)}  # fmt: skip
# Crops of each class, and how dry its canopy looks in the shortwave infrared.
_CLASSES = (("maize",), ("cassava",), ("bean",), ("maize", "bean"), ("maize", "cassava"), ("maize", "soybean"),
            ("cassava", "bean"))  # fmt: skip
_DRYNESS = (1.0, 0.94, 1.05, 1.02, 0.97, 1.0, 0.99)
_MEDIAN_PIXELS, _SPREAD = 10, 0.85
_NOTICE = """GENERATED DATA - NOT KENYA

These rasters were invented by croplem_hf (generate_kenya, seed {seed}). They have the file layout of Kenya CV4A
(ref_african_crops_kenya_02) and nothing else of it: no pixel was measured, no field exists.
A score on this folder is not a result on Kenya. Keep this file: readers tell by it that the data is invented.
"""


def generate_kenya(
    root: str | os.PathLike,
    *,
    layout: str = "source",
    seed: int = 0,
    tile_size: tuple[int, int] = (126, 190),
    fields: int = 240,
    clouds: float = 0.25,
    defects: bool = False,
) -> Path:
    """Write four tiles of 13 dates with invented fields, their numbers, labels and splits.

    The same seed gives the same values in every layout. Classes and the share of test fields are as published; a field
    has a median of ten pixels, and one field lies across a seam of two tiles.

    Args:
        root: the folder, made where missing; files of the same names are replaced.
        layout: "source" (Source Cooperative), "zindi" or "mlhub".
        seed: of all that is random.
        tile_size: width and height of a tile in pixels; the published ones are (2016, 3035), 16 GB in all.
        fields: how many to place; fewer where they find no room.
        clouds: mean share of pixels under cloud, 0..1.
        defects: True to plant what a reader must report: a raster cut short, a field of two labels, a field number
            without pixels.

    Returns:
        `root`. `GENERATED.txt` in it says what it is.

    Raises:
        DataError: an argument out of range.
    """
    root, (width, height) = Path(root), tile_size
    if layout not in LAYOUTS:
        raise DataError(f"layout must be one of {LAYOUTS}, found {layout!r}")
    if min(tile_size) < 24 or fields < 1 or not 0 <= clouds < 1:
        raise DataError(f"tiles need 24 pixels, a field and clouds in 0..1, found {tile_size}, {fields} and {clouds}")
    root.mkdir(parents=True, exist_ok=True)
    (root / GENERATED).write_text(_NOTICE.format(seed=seed))
    rng = np.random.default_rng(seed)
    shape = (2 * height, 2 * width)
    ids = _place_fields(shape, fields, rng)
    count = int(ids.max())
    kinds = rng.permutation(np.repeat(np.arange(7), _quotas(count)))
    test = np.zeros(count, bool)
    test[rng.permutation(count)[: round(count * TEST_SHARE)]] = True
    codes = np.where(test, 0, kinds + 1)
    labels = np.concatenate([[0], codes]).astype(np.uint8)[ids]
    # Published numbers are in no order of place.
    numbers = np.concatenate([[0], 1 + rng.permutation(count)])
    rows = [numbers[1:][~test].tolist(), numbers[1:][test].tolist()]
    if defects:
        field = int(np.flatnonzero((codes > 0) & (np.bincount(ids.ravel())[1:] >= 5))[0])
        place = np.argwhere(ids == field + 1)[0]
        labels[tuple(place)] = codes[field] % 7 + 1
        rows[0].append(count + 1)
    for tile, cut in _tiles(tile_size):
        for kind, values in (("field_id", numbers[ids].astype(np.int32)), ("label", labels)):
            write_geotiff(_label_path(root, layout, tile, kind), values[cut][None])
    _write_splits(root, layout, *rows)
    ground = _Ground(ids, kinds, rng)
    for date in DATES:
        cloud = _clouds(shape, clouds, rng)
        for band in (*BANDS, "CLD"):
            if band == "CLD":
                noisy = 100 * cloud + rng.normal(0, 4, shape)
                values = np.clip(np.rint(noisy), 0, 100).astype(np.uint8)
            else:
                values = ground.reflectance(date, band, cloud, rng)
            for tile, cut in _tiles(tile_size):
                write_geotiff(_image_path(root, layout, tile, date, band), values[cut][None])
    if defects:
        path = _image_path(root, layout, 2, DATES[-1], "B12")
        os.truncate(path, path.stat().st_size // 2)
    return root


class _Ground:
    """Plots of crops and bush, how green each is on a date, and what that reflects."""

    def __init__(self, ids: np.ndarray, kinds: np.ndarray, rng: np.random.Generator):
        shape = ids.shape
        # Land between the fields is made of plots too, whose crops nobody asked for.
        seeds = rng.uniform(0, 1, (max(ids.size // 14, 1), 2)) * shape
        points = np.indices(shape).reshape(2, -1).T
        plots = cKDTree(seeds).query(points)[1].reshape(shape)
        others = rng.choice(8, size=len(seeds), p=[0.27, 0.15, 0.03, 0.1, 0.04, 0.03, 0.03, 0.35])
        self.plot = np.where(ids > 0, len(seeds) + ids - 1, plots).astype(np.int32)
        self.kind = np.concatenate([others, kinds])
        n = len(self.kind)
        self.late, self.vigour = rng.normal(0, 12, n), np.clip(rng.normal(1, 0.13, n), 0.5, 1.4)
        self.dark = np.clip(rng.normal(1, 0.1, n), 0.7, 1.4).astype(np.float32)
        self.texture = 1 + 0.06 * _smooth(shape, 1.0, rng) + 0.08 * _smooth(shape, 12.0, rng)

    def reflectance(self, date: str, band: str, cloud: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One band on a date, float32 (H, W), 0..1."""
        k = BANDS.index(band)
        green = self._green(date).astype(np.float32)
        dry = np.concatenate([_DRYNESS, [1.0]])[self.kind] if band in ("B11", "B12") else np.ones(len(self.kind))
        bare = _SOIL[k] * self.dark
        plot = bare + green * (_CROP[k] * dry - bare)
        values = plot.astype(np.float32)[self.plot] * self.texture
        values = _coarse(values, S2_RESOLUTION_M[S2_BANDS.index(band)] // 10)
        values = values * (1 - cloud) + _CLOUD[k] * cloud + rng.normal(0, 8, values.shape)
        return (np.clip(values, 1, 16000) / 10000).astype(np.float32)

    def _green(self, date: str) -> np.ndarray:
        """Share of green canopy of each plot, 0..1."""
        day = (np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}") - np.datetime64(f"{date[:4]}-01-01")).astype(int) + 1
        curves = {}
        for crop, (peak, rise, fall, most, least) in _CALENDAR.items():
            since = day - peak - self.late
            # A second, weaker season follows with the short rains from October.
            second = 0.3 * np.exp(-np.log(2) * ((day - 325 - self.late) / 35) ** 2)
            bump = np.exp(-np.log(2) * (since / np.where(since < 0, rise, fall)) ** 2)
            curves[crop] = least + most * np.maximum(bump, second)
        bush = 0.42 + 0.1 * np.cos(2 * np.pi * (day - 150) / 365)
        kinds = [sum(curves[crop] for crop in crops) / len(crops) for crops in _CLASSES]
        green = np.choose(self.kind, [*kinds, np.full(len(self.kind), bush)])
        return np.clip(green * self.vigour, 0, 1)


def _place_fields(shape: tuple[int, int], fields: int, rng: np.random.Generator) -> np.ndarray:
    """Turned rectangles numbered from 1, int32 `shape`; the first lies across the seam of the left tiles."""
    ids = np.zeros(shape, np.int32)
    number = 0
    for attempt in range(8 * fields):
        area = 24.0 if attempt == 0 else _MEDIAN_PIXELS * np.exp(rng.normal(0, _SPREAD))
        ratio, angle = np.exp(rng.normal(0.4, 0.3)), rng.uniform(0, np.pi)
        centre = rng.uniform(1, np.array(shape) - 1)
        if attempt == 0:
            centre, ratio = np.array([shape[0] / 2, shape[1] / 4]), 1.0
        half = np.sqrt(np.array([area * ratio, area / ratio])) / 2
        reach = int(np.ceil(np.hypot(*half)))
        r0, c0 = np.maximum(np.floor(centre).astype(int) - reach, 0)
        y, x = np.mgrid[r0 : min(r0 + 2 * reach + 1, shape[0]), c0 : min(c0 + 2 * reach + 1, shape[1])]
        dy, dx = y + 0.5 - centre[0], x + 0.5 - centre[1]
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        inside = (np.abs(u) <= half[0]) & (np.abs(v) <= half[1])
        where = ids[y[:, :1], x[:1]]
        if inside.any() and not where[inside].any():
            number += 1
            ids[y[inside], x[inside]] = number
        if number == fields:
            break
    return ids


def _quotas(count: int) -> np.ndarray:
    """Fields of each class, int (7,), in the published mix: the largest remainders are rounded up."""
    exact = np.array(FIELD_COUNTS) * count / sum(FIELD_COUNTS)
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: count - whole.sum()]] += 1
    return whole


def _clouds(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """How thick clouds are, 0..1, float32 `shape`; the share differs from date to date."""
    share = share * rng.uniform(0, 2) if share <= 0.5 else rng.uniform(2 * share - 1, 1)
    field = _smooth(shape, 14.0, rng) + 0.3 * _smooth(shape, 3.0, rng)
    if share <= 0:
        return np.zeros(shape, np.float32)
    return np.clip((field - np.quantile(field, 1 - share)) / 0.6 + 0.15, 0, 1).astype(np.float32)


def _coarse(values: np.ndarray, step: int) -> np.ndarray:
    """(H, W) at pixels of `step` x `step`, repeated to the same size."""
    if step == 1:
        return values
    rows, columns = (-(-side // step) * step for side in values.shape)
    padded = np.pad(values, ((0, rows - values.shape[0]), (0, columns - values.shape[1])), mode="edge")
    means = padded.reshape(rows // step, step, columns // step, step).mean(axis=(1, 3))
    return means.repeat(step, 0).repeat(step, 1)[: values.shape[0], : values.shape[1]]


def _smooth(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Random field of mean 0 and deviation 1, correlated over about `scale` pixels, float32."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), scale, mode="wrap")
    return (field - field.mean()) / field.std()


def _tiles(tile_size: tuple[int, int]):
    """Number of each tile and its part of the mosaic."""
    width, height = tile_size
    for tile, (down, right) in sorted(TILE_PLACES.items()):
        yield tile, np.s_[down * height : (down + 1) * height, right * width : (right + 1) * width]


def _image_path(root: Path, layout: str, tile: int, date: str, band: str) -> Path:
    if layout == "mlhub":
        name = "ref_african_crops_kenya_02"
        return root / f"{name}_source" / f"{name}_tile_{tile:02d}_{date}" / f"{band}.tif"
    return root / "data" / _folder(layout, tile) / date / f"{tile}_{band}_{date}.tif"


def _label_path(root: Path, layout: str, tile: int, kind: str) -> Path:
    if layout == "mlhub":
        name = "ref_african_crops_kenya_02_labels"
        return root / name / f"ref_african_crops_kenya_02_tile_{tile:02d}_label" / f"{kind}s.tif"
    return root / "data" / _folder(layout, tile) / f"{tile}_{kind}.tif"


def _folder(layout: str, tile: int) -> str:
    return f"{tile:02d}" if layout == "zindi" else str(tile)


def _write_splits(root: Path, layout: str, train: list[int], test: list[int]) -> None:
    path = root / "FieldIds.csv"
    if layout == "mlhub":
        path = root / "ref_african_crops_kenya_02_labels" / "_common" / "field_train_test_ids.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test = sorted(train), sorted(test)
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["train", "test"])
        for k in range(max(len(train), len(test))):
            writer.writerow([column[k] if k < len(column) else "" for column in (train, test)])


__all__ = ["DATES", "FIELD_COUNTS", "LAYOUTS", "generate_kenya"]
