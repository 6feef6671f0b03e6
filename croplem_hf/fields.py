"""Embeddings of fields: polygons over a scene, each embedded from its own pixels, weighted by the area it covers.

A field is seen through the smallest window of whole pixels that holds it, on the scene's grid; pixels outside it are
hidden from the model. So its embedding depends on the field and the imagery alone, not on neighbours, a tiling, or
where the scene ends: two scenes of the same imagery that overlap give the same field the same embedding.

A token counts by the area of its patch that the field covers, and tokens are pooled as the model pools them (within
sensors, then over sensors). Patches have the fewest pixels of 1, 2, 4, ... at which the field has at most
`TOKENS_PER_FIELD` tokens over all dates of both sensors: small fields are seen pixel by pixel, large ones in patches,
of which those at the border see the field's own pixels only.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio.warp
import shapely
import torch
from rasterio.crs import CRS
from rasterio.transform import Affine
from tqdm.auto import tqdm

from .data.folder import Scene
from .data.polygons import Polygons
from .data.sample import Sample, make_sample
from .embedding import TOKENS_PER_BATCH, Embedder, write_skipped
from .errors import DataError
from .model.tokens_croplem import pool_sensors
from .sensors import SENSORS
from .table import EmbeddingsTable, TableWriter, read_table

logger = logging.getLogger(__name__)

TOKENS_PER_FIELD = 4096
MOST_TOKENS = 2**15
"""A field of more tokens at the largest patch size is skipped: attention would take minutes."""
LEAST_COVER = 0.01
"""A pixel of which the field covers less is none of the field's."""
SMALL_PIXELS = 4
# Fields are read together where they lie in one square of so many values (bands, dates, pixels; 128 MB as float32).
BLOCK_VALUES = 2**25
BLOCK = 256
CHUNK = 256
BY_FIELD = "by field"
OWN_COLUMNS = ("id", "embedding", "lon", "lat", "area_ha", "pixels", "valid_share", "inside_share", "patch_size",
               "repaired", "gsd", "sensors", "s1_kind", "s2_level", "scene")  # fmt: skip


def coverage(geometry, row: int, column: int, height: int, width: int) -> np.ndarray:
    """Share of each pixel that a polygon covers, exactly.

    Args:
        geometry: shapely polygon in pixels: x is the column, y the row, whole numbers are the pixels' edges.
        row, column, height, width: the window.

    Returns:
        float64 (height, width), 0..1.
    """
    rows, columns = np.mgrid[row : row + height, column : column + width]
    boxes = shapely.box(columns, rows, columns + 1, rows + 1)
    shapely.prepare(geometry)
    shares = shapely.contains_properly(geometry, boxes).astype(np.float64)
    border = (shares == 0) & shapely.intersects(geometry, boxes)
    shares[border] = shapely.area(shapely.intersection(geometry, boxes[border]))
    return shares.clip(0, 1)


def patch_weights(shares: np.ndarray, patch_size: int) -> np.ndarray:
    """Covered pixels of each patch: (height, width) -> (rows, columns), beyond the window nothing is covered."""
    height, width = shares.shape
    p = patch_size
    shares = np.pad(shares, ((0, -height % p), (0, -width % p)))
    return shares.reshape(shares.shape[0] // p, p, shares.shape[1] // p, p).sum(axis=(1, 3))


@dataclasses.dataclass(frozen=True)
class FieldWindow:
    """The window of a field: first row and column, which may lie outside the scene, and `shares` (height, width) of
    its pixels that are the field's."""

    row: int
    column: int
    shares: np.ndarray


class SceneFields:
    """The fields of a file over a scene as a source: `ids`, `kind`, `unit`, and samples by number.

    Fields are in the order in which they are read, by squares of the scene. A sample has, beside the contract, what the
    table says of the field, all attributes of its polygon, and `coverage` float64 (H, W), the share of each pixel that
    is the field's; pixels without a share are not valid.

    Args:
        scene: the place (`open_scene`).
        polygons: its fields (`read_polygons`).
        sensors: which of "s1" and "s2" to read; None for both.
        shrink: metres by which the border moves inward, for polygons drawn with an error of GPS.

    Raises:
        DataError: a scene that lies nowhere on Earth or lacks the sensors, or a negative `shrink`.
    """

    kind = "fields"
    unit = "field"

    def __init__(
        self, scene: Scene, polygons: Polygons, *, sensors: Sequence[str] | None = None, shrink: float = 0.0
    ):
        if not 0 <= shrink < np.inf:
            raise DataError(f"shrink must be metres of at least 0, found {shrink}")
        if scene.crs is None or scene.lon is None:
            raise DataError(f"{scene.id}: the rasters have no coordinate system; fields cannot be laid over them")
        self.scene, self.polygons, self.shrink = scene, polygons, float(shrink)
        self.sensors = tuple(s for s in SENSORS if scene.dates[s] and s in (sensors or SENSORS))
        if not self.sensors:
            raise DataError(f"{scene.id}: holds no imagery of {' or '.join(sensors or SENSORS)}")
        self._values = sum({"s1": 2, "s2": 13}[s] * len(scene.dates[s]) for s in SENSORS)
        self._inverse = ~Affine(*scene.transform)
        # Equal areas, and true lengths as near as a scene is wide.
        self._local = CRS.from_string(f"+proj=laea +lat_0={scene.lat} +lon_0={scene.lon} +units=m")
        self._place()

    def __len__(self) -> int:
        return len(self.ids)

    def _place(self) -> None:
        """Bring all polygons to pixels of the scene, find what cannot be used, and choose the order of reading."""
        given, n = self.polygons.geometries, len(self.polygons)
        problems = dict(self.polygons.problems)
        there = np.flatnonzero([g is not None for g in given])
        local = np.full(n, None, object)
        local[there] = _transformed(given[there], self.polygons.crs, self._local)
        area = np.zeros(n)
        area[there] = shapely.area(local[there]) / 1e4
        centre = _coordinates(shapely.centroid(local), self._local, CRS.from_epsg(4326))
        target = CRS.from_user_input(self.scene.crs)
        if self.shrink:
            shrunk = shapely.buffer(local, -self.shrink, join_style="mitre")
            for k in there[shapely.is_empty(shrunk[there])]:
                widest = 2 * shapely.maximum_inscribed_circle(local[k]).length
                problems[self.polygons.ids[k]] = (
                    f"nothing is left of it after shrinking by {self.shrink:g} m on each side, since it is "
                    f"{widest:.0f} m wide; shrink by less"
                )
                shrunk[k] = None
            there = np.flatnonzero([g is not None for g in shrunk])
            pixels = np.full(n, None, object)
            pixels[there] = _transformed(shrunk[there], self._local, target)
        else:
            pixels = np.full(n, None, object)
            pixels[there] = _transformed(given[there], self.polygons.crs, target)
        bounds = np.full((n, 4), np.nan)
        if len(there):
            pixels[there] = shapely.transform(pixels[there], self._to_pixels)
            bounds[there] = shapely.bounds(pixels[there])
        for k in there:
            left, top, right, bottom = bounds[k]
            if not np.isfinite(bounds[k]).all():
                problems[self.polygons.ids[k]] = "it cannot be brought to the coordinate system of the scene"
            elif right <= 0 or bottom <= 0 or left >= self.scene.width or top >= self.scene.height:
                place = f"({centre[k, 0]:.5f}, {centre[k, 1]:.5f})"
                problems[self.polygons.ids[k]] = (
                    f"lies outside the scene {self.scene.id}: its longitude and latitude are {place}, those of the "
                    f"scene's middle ({self.scene.lon:.5f}, {self.scene.lat:.5f})"
                )
        side = int(np.clip(np.sqrt(BLOCK_VALUES / self._values), 1, BLOCK))
        corner = np.nan_to_num(bounds[:, :2], nan=-1, posinf=-1, neginf=-1) // side
        order = np.lexsort((np.arange(n), corner[:, 0], corner[:, 1]))
        self.ids = [self.polygons.ids[k] for k in order]
        self._problems = [problems.get(name) for name in self.ids]
        self._rows, self._pixels = order, pixels[order]
        self._square = [tuple(square) for square in corner[order]]
        self._area, self._lon_lat = area[order], centre[order]

    def _to_pixels(self, xy: np.ndarray) -> np.ndarray:
        return np.stack(self._inverse * (xy[:, 0], xy[:, 1]), axis=1)

    def window(self, i: int) -> FieldWindow:
        """The window of field `i`.

        Raises:
            DataError: why there is none.
        """
        if self._problems[i]:
            raise DataError(f"{self.ids[i]}: {self._problems[i]}")
        left, top, right, bottom = shapely.bounds(self._pixels[i])
        row, column, stop, end = int(np.floor(top)), int(np.floor(left)), int(np.ceil(bottom)), int(np.ceil(right))
        if (stop - row) * (end - column) * self._values > 2 * BLOCK_VALUES:
            raise DataError(
                f"{self.ids[i]}: its window of {stop - row} x {end - column} pixels over all dates is too large to be "
                "read at once; cut it into several polygons"
            )
        try:
            shares = coverage(self._pixels[i], row, column, stop - row, end - column)
        except shapely.errors.GEOSException as error:
            raise DataError(f"{self.ids[i]}: its polygon is broken ({error})") from error
        shares[shares < LEAST_COVER] = 0
        # Edges that lie on the grid may be rounded across it.
        rows, columns = np.flatnonzero(shares.any(axis=1)), np.flatnonzero(shares.any(axis=0))
        if not len(rows):
            raise DataError(f"{self.ids[i]}: is smaller than a hundredth of a pixel")
        shares = shares[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return FieldWindow(row + int(rows[0]), column + int(columns[0]), shares)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`.

        Raises:
            IndexError: past the end.
            DataError: naming the field: why it cannot be used, or nothing valid in it.
        """
        i = range(len(self))[i]
        window = self.window(i)
        return self._sample(i, window, self._arrays(*self._inside([window])), self._inside([window]))

    def view(self, i: int, margin: int = 8) -> tuple[Sample, list[np.ndarray]]:
        """For a picture: the field with its surroundings, and its outline.

        Args:
            i: number of the field.
            margin: pixels around it, or half its size, whatever is more.

        Returns:
            a sample in which all pixels count; rings (N, 2) of column and row in it.

        Raises:
            DataError: as for a sample.
        """
        window = self.window(i)
        margin = max(margin, max(window.shares.shape) // 2)
        top, left = max(0, window.row - margin), max(0, window.column - margin)
        height = min(self.scene.height, window.row + window.shares.shape[0] + margin) - top
        width = min(self.scene.width, window.column + window.shares.shape[1] + margin) - left
        if height <= 0 or width <= 0:
            raise DataError(f"{self.ids[i]}: lies outside the scene {self.scene.id}")
        polygons = shapely.get_parts(self._pixels[i])
        rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
        return self.scene.read(top, left, height, width), [np.array(ring.coords) - (left, top) for ring in rings]

    def read_chunk(self, start: int, most: int = CHUNK) -> tuple[list[Sample], list[tuple[str, str]], int]:
        """Samples of the fields from `start` on that lie in one square; (id, reason) of the others; where it ends."""
        stop = start + 1
        while stop < min(start + most, len(self)) and self._square[stop] == self._square[start]:
            stop += 1
        windows, samples, skipped = {}, [], []
        for i in range(start, stop):
            try:
                windows[i] = self.window(i)
            except DataError as error:
                skipped.append((self.ids[i], str(error)))
        box = self._inside(windows.values()) if windows else None
        together = box is not None and box[2] * box[3] * self._values <= BLOCK_VALUES
        arrays = None
        if together and len(windows) > 1 and min(box[2:]) > 0:
            try:
                arrays = self._arrays(*box)
            except DataError:
                logger.debug("rows %d to %d are read field by field", start, stop)
        for i, window in windows.items():
            own = box if arrays is not None else self._inside([window])
            try:
                samples.append(self._sample(i, window, self._arrays(*own) if arrays is None else arrays, own))
            except DataError as error:
                skipped.append((self.ids[i], str(error)))
        return samples, sorted(skipped, key=lambda item: self.ids.index(item[0], start, stop)), stop

    def _inside(self, windows) -> tuple[int, int, int, int]:
        """Row, column, height and width of the part of the scene that holds these windows."""
        windows = list(windows)
        top, left = (max(0, min(getattr(w, name) for w in windows)) for name in ("row", "column"))
        bottom = min(self.scene.height, max(w.row + w.shares.shape[0] for w in windows))
        right = min(self.scene.width, max(w.column + w.shares.shape[1] for w in windows))
        return top, left, max(0, bottom - top), max(0, right - left)

    def _arrays(self, row: int, column: int, height: int, width: int) -> dict:
        return self.scene.arrays(row, column, height, width) if height and width else {}

    def _sample(self, i: int, window: FieldWindow, arrays: dict, box: tuple[int, int, int, int]) -> Sample:
        """The sample of a window, cut from the arrays of a box of the scene that holds what of it is inside."""
        name, shares = self.ids[i], window.shares
        height, width = shares.shape
        top, left = max(window.row, box[0]), max(window.column, box[1])
        bottom, right = min(window.row + height, box[0] + box[2]), min(window.column + width, box[1] + box[3])
        if bottom <= top or right <= left:
            raise DataError(f"{name}: lies outside the scene {self.scene.id}")
        source = np.s_[..., top - box[0] : bottom - box[0], left - box[1] : right - box[1]]
        target = np.s_[..., top - window.row : bottom - window.row, left - window.column : right - window.column]
        inside = np.zeros((height, width), bool)
        inside[target] = True
        fields, seen, dates = {}, 0.0, 0
        for key, value in arrays.items():
            if key[:2] not in self.sensors:
                continue
            if key.endswith("_valid") or (isinstance(value, np.ndarray) and value.ndim == 4):
                whole = np.zeros((*value.shape[:-2], height, width), value.dtype)
                whole[target] = value[source]
                value = whole & (shares > 0) if key.endswith("_valid") else whole
            fields[key] = value
        for sensor in self.sensors:
            seen += float((fields[f"{sensor}_valid"] * shares).sum())
            dates += len(fields[f"{sensor}_dates"])
        if not seen:
            some = shares[inside].sum() / shares.sum()
            where = "" if some > 0.999 else f"; {some:.0%} of it lies inside the scene"
            raise DataError(f"{name}: nothing valid in it on any of {dates} dates (clouds or no data){where}")
        a, b, c, d, e, f = self.scene.transform
        row = self._rows[i]
        own = {
            "lon": float(self._lon_lat[i, 0]), "lat": float(self._lon_lat[i, 1]), "area_ha": float(self._area[i]),
            "pixels": float(shares.sum()), "valid_share": seen / (dates * shares.sum()),
            "inside_share": float(shares[inside].sum() / shares.sum()), "repaired": bool(self.polygons.repaired[row]),
        }  # fmt: skip
        attributes = {renamed(key): value for key, value in self.polygons.attributes[row].items()}
        place = c + a * window.column + b * window.row, f + d * window.column + e * window.row
        sample = make_sample(
            name, gsd=self.scene.gsd, **fields, crs=self.scene.crs, transform=(a, b, place[0], d, e, place[1]),
            scene=self.scene.id, **own,
        )  # fmt: skip
        return sample | {"coverage": shares, "attributes": attributes}


def renamed(name: str) -> str:
    """Name in the embeddings table of an attribute: as it is, unless it is the name of a column of ours."""
    return f"{name}_given" if name in OWN_COLUMNS else name


def field_patch_size(shares: np.ndarray, dates: int, largest: int) -> int | None:
    """The fewest pixels a patch, of 1, 2, 4, ..., at which a field has at most `TOKENS_PER_FIELD` tokens.

    Args:
        shares: (H, W), as of `FieldWindow`.
        dates: of all sensors.
        largest: patch size that the model takes.

    Returns:
        `largest` for up to `MOST_TOKENS` tokens; None for more.
    """
    for p in (p for p in (1, 2, 4, 8, 16, 32) if p <= largest):
        tokens = dates * int((patch_weights(shares, p) > 0).sum())
        if tokens <= TOKENS_PER_FIELD:
            return p
    return p if tokens <= MOST_TOKENS else None


def encode_fields(
    embedder: Embedder, samples: Sequence[Sample], patch_sizes: Sequence[int], *, centre: bool = True
) -> np.ndarray:
    """Embed samples of `SceneFields`, each by the patch size beside it -> float32 (N, D).

    With a polygon of whole patches this is what `Embedder.encode` gives of its window.
    """
    out = np.empty((len(samples), embedder.dim), np.float32)
    tokens = [
        sum(len(s[f"{k}_dates"]) for k in SENSORS) * int((patch_weights(s["coverage"], p) > 0).sum())
        for s, p in zip(samples, patch_sizes, strict=True)
    ]
    # Fields of equally many tokens share a batch, which then needs little padding.
    order = sorted(range(len(samples)), key=lambda k: (patch_sizes[k], tokens[k]))
    while order:
        p, size = patch_sizes[order[0]], 1
        while (
            size < len(order)
            and patch_sizes[order[size]] == p
            and (size + 1) * tokens[order[size]] <= TOKENS_PER_BATCH
        ):
            size += 1
        part, order = order[:size], order[size:]
        weights = [patch_weights(samples[k]["coverage"], p) for k in part]
        rows, columns = (max(w.shape[axis] for w in weights) for axis in (0, 1))
        padded = np.stack([np.pad(w, ((0, rows - w.shape[0]), (0, columns - w.shape[1]))) for w in weights])
        try:
            inputs = embedder.processor([samples[k] for k in part])
        except ValueError as error:
            raise DataError(str(error)) from error
        with torch.inference_mode():
            model = embedder.model
            found = model(**inputs.to(embedder.device), patch_size=p)
            index, mask = found.token_index, found.token_mask
            area = torch.from_numpy(padded).to(embedder.device, found.last_hidden_state.dtype)
            # Of padding the place is arbitrary.
            y, x = index[..., 2].clamp(max=rows - 1), index[..., 3].clamp(max=columns - 1)
            weight = area[torch.arange(len(part), device=area.device)[:, None], y, x] * mask
            pooled = pool_sensors(found.last_hidden_state, weight, index[..., 0], model.config.pooling == "mean_std")
            pooled = pooled.float() - model.embedding_centre.float() if centre else pooled.float()
        out[part] = pooled.cpu().numpy()
    return out


def field_info(
    embedder: Embedder,
    *,
    sensors: Sequence[str] | None = None,
    patch_size: int | None = None,
    centre: bool = True,
    shrink: float = 0.0,
) -> dict:
    """What a table of fields must say of how its vectors were made."""
    info = embedder.info("field", sensors=sensors, patch_size=patch_size, centre=centre)
    info["patch_size"] = BY_FIELD if patch_size is None else int(patch_size)
    info["pooling"] += ", weighted by the area of the field"
    return info | {"shrink_m": float(shrink)}


def embed_fields(
    scene: Scene,
    polygons: Polygons,
    embedder: Embedder,
    out: str | os.PathLike,
    *,
    sensors: Sequence[str] | None = None,
    patch_size: int | None = None,
    centre: bool = True,
    shrink: float = 0.0,
    progress: bool = True,
) -> EmbeddingsTable:
    """Embed the fields of a file over a scene into an embeddings table of unit "field", resuming where it was cut off.

    Columns beside `id` and `embedding`: `lon` and `lat` of the centroid; `area_ha` of the polygon as given; `pixels`
    that it covers after shrinking, in parts; `valid_share`, the mean over all dates and sensors of the share of its
    area that was seen; `inside_share`, how much of it lies in the scene; `patch_size`; `repaired`, whether a broken
    polygon was mended; the scene, and all attributes of the polygons (one that is named as a column of ours gets the
    ending `_given`). Rows are in the order of reading. Fields that cannot be embedded are listed with the reason in
    `OUT.skipped.csv`: outside the scene, under cloud on every date, empty, broken, too large, or nothing left.

    `KenyaFields` gives the fields of that data set, which come as numbers of pixels, as items of
    `Embedder.embed_source`; polygons of any region go through here. Both hide what lies outside the field. They differ
    at its border, where a polygon counts pixels by the share that it covers, and in the patch size, so that their
    tables are told apart.

    Args:
        scene: the place (`open_scene`).
        polygons: its fields (`read_polygons`).
        embedder: the encoder.
        out: Parquet file to write, under its name only when it is whole; replaces an embeddings table.
        sensors, centre: as in `Embedder.encode`.
        patch_size: pixels a patch for all fields; None chooses for each.
        shrink: metres by which borders move inward.
        progress: show a bar on stderr.

    Raises:
        DataError: not a single field could be embedded, or something else than an embeddings table lies at `out`.
        CheckpointError: an unfinished table of other settings or polygons lies at `out`.
    """
    embedder.check_options(sensors, patch_size)
    source, out = SceneFields(scene, polygons, sensors=sensors, shrink=shrink), Path(out)
    info = field_info(embedder, sensors=sensors, patch_size=patch_size, centre=centre, shrink=shrink)
    info["source"] = {"scene": scene.id, "polygons_sha256": polygons.sha256}
    writer, row, small = TableWriter(out, info, source.ids), 0, 0
    with tqdm(total=len(source), unit="fields", disable=not progress, desc="embedding fields") as bar:
        while row < len(source):
            stop = writer.finished(row)
            if stop is None:
                samples, skipped, stop = source.read_chunk(row)
                samples, sizes, large = sized(samples, embedder, patch_size)
                vectors = encode_fields(embedder, samples, sizes, centre=centre)
                rows = [field_row(sample, p) for sample, p in zip(samples, sizes, strict=True)]
                writer.add_part(row, stop, vectors, rows, [*skipped, *large])
            bar.update(stop - row)
            row = stop
    skipped = writer.skipped()
    skipped_file = out.with_name(out.name + ".skipped.csv")
    write_skipped(skipped_file, skipped)
    if len(skipped) == len(source):
        writer.discard()
        raise DataError(
            f"none of {len(source)} fields could be embedded, see {skipped_file}; the first: {skipped[0][1]}"
        )
    writer.finish()
    table = read_table(out)
    small = int((np.array(table.metadata["pixels"]) < SMALL_PIXELS).sum())
    for count, text in (
        (len(skipped), f"fields skipped, listed in {skipped_file}"),
        (int(np.array(table.metadata["repaired"]).sum()), "broken polygons were mended (column repaired)"),
        (small, f"fields cover fewer than {SMALL_PIXELS} pixels, most of them shared with neighbours (column pixels)"),
    ):
        if count:
            logger.warning("%d of %d %s", count, len(source), text)
    return table


def sized(
    samples: Sequence[Sample], embedder: Embedder, patch_size: int | None
) -> tuple[list[Sample], list[int], list[tuple[str, str]]]:
    """Samples of `SceneFields` that are not too large, their patch sizes, and (id, reason) of the others."""
    kept, sizes, large = [], [], []
    for sample in samples:
        dates = sum(len(sample[f"{s}_dates"]) for s in SENSORS)
        p = patch_size or field_patch_size(sample["coverage"], dates, 2 * embedder.model.config.patch_size)
        if p is None or dates * int((patch_weights(sample["coverage"], p) > 0).sum()) > MOST_TOKENS:
            text = f"its {sample['area_ha']:.0f} ha over {dates} dates are more than {MOST_TOKENS} tokens"
            large.append((sample["id"], f"{sample['id']}: {text}; cut it into several polygons"))
        else:
            kept.append(sample)
            sizes.append(p)
    return kept, sizes, large


def field_row(sample: Sample, patch_size: int) -> dict:
    """The columns of a field in the embeddings table."""
    own = {name: sample[name] for name in OWN_COLUMNS if name in sample}
    used = [s for s in SENSORS if sample[s] is not None]
    return own | {"patch_size": patch_size, "sensors": "+".join(used)} | sample["attributes"]


def _transformed(geometries: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    """Geometries in another coordinate system; coordinates that have no place there become infinite."""
    if source == target or not len(geometries):
        return geometries
    return shapely.transform(geometries, lambda xy: _points(xy, source, target))


def _coordinates(points: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    """(N, 2) of shapely points, NaN for None."""
    xy = np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)
    known = np.isfinite(xy).all(axis=1)
    xy[known] = _points(xy[known], source, target)
    return xy


def _points(xy: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    xs, ys = rasterio.warp.transform(source, target, xy[:, 0], xy[:, 1]) if len(xy) else ([], [])
    return np.stack([xs, ys], axis=1).astype(np.float64).reshape(-1, 2)


__all__ = [
    "FieldWindow", "SceneFields", "coverage", "embed_fields", "encode_fields", "field_info", "field_patch_size",
    "patch_weights",
]  # fmt: skip
