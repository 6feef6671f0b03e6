"""Pictures of samples: true and false colour, radar, line charts of series, and sheets of similar items."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.sample import Sample
from .errors import DataError
from .sensors import S2_BANDS

GREY = 128
CELL, GAP, CAPTION, HEAD = 176, 8, 56, 26
# Digital numbers shown as white: bright dry land; water stays dark instead of being stretched to noise.
WHITE_AT = 2600
NEAR_INFRARED_WHITE_AT = 5000
TRUE_COLOUR, FALSE_COLOUR = ("B04", "B03", "B02"), ("B08", "B04", "B03")
# Backscatter in dB from black to white: VV, VH, and their difference.
RADAR_RANGE = ((-20.0, 0.0), (-27.0, -6.0), (2.0, 13.0))
_INK, _FAINT, _PAPER, _FRAME = (25, 25, 25), (150, 150, 150), (255, 255, 255), (200, 80, 20)
_OUTLINE = (255, 225, 40)
_LINES = ((30, 110, 200), (210, 90, 30))


def true_colour(sample: Sample) -> np.ndarray | None:
    """B04, B03, B02 of the clearest date -> uint8 (H, W, 3), grey where invalid; None without optics."""
    date = optical_date(sample)
    if date is None:
        return None
    values, valid = _bands(sample, date, TRUE_COLOUR), sample["s2_valid"][date]
    # One white for all three keeps the hue.
    return _stretched(values, valid, np.full(3, max(WHITE_AT, np.percentile(values[:, valid], 99))))


def false_colour(sample: Sample) -> np.ndarray | None:
    """B08, B04, B03 of the date of `true_colour`, so that plants are red; likewise, and None without B08."""
    date = optical_date(sample)
    if date is None or not sample["s2_bands"][date, S2_BANDS.index("B08")]:
        return None
    values, valid = _bands(sample, date, FALSE_COLOUR), sample["s2_valid"][date]
    white = (NEAR_INFRARED_WHITE_AT, WHITE_AT, WHITE_AT)
    return _stretched(values, valid, np.maximum(white, np.percentile(values[:, valid], 99, axis=1)))


def optical_date(sample: Sample) -> int | None:
    """Number of the date on which most pixels have the bands of true colour; None where there is none."""
    if sample["s2"] is None:
        return None
    channels = [S2_BANDS.index(name) for name in TRUE_COLOUR]
    usable = sample["s2_valid"] & sample["s2_bands"][:, channels].all(axis=1)[:, None, None]
    date = int(usable.sum(axis=(1, 2)).argmax())
    return date if usable[date].any() else None


def _bands(sample: Sample, date: int, names: Sequence[str]) -> np.ndarray:
    """float32 (3, H, W)."""
    return np.nan_to_num(sample["s2"][date, [S2_BANDS.index(name) for name in names]].astype(np.float32))


def _stretched(values: np.ndarray, valid: np.ndarray, white: np.ndarray) -> np.ndarray:
    # The atmosphere's share, at most 1,500: the darkest pixels of each band become black.
    low = np.array([min(np.percentile(band[valid], 1), 1500.0) for band in values])[:, None, None]
    scaled = np.clip((values - low) / (white[:, None, None] - low), 0, 1) ** (1 / 1.6)
    return _image(np.moveaxis(scaled, 0, -1), valid)


def radar(sample: Sample) -> np.ndarray | None:
    """VV, VH and VV - VH of the fullest date -> uint8 (H, W, 3) at fixed ranges in dB; None without radar."""
    if sample["s1"] is None:
        return None
    date = radar_date(sample)
    vv, vh = np.nan_to_num(sample["s1"][date])
    layers = [(x - low) / (high - low) for x, (low, high) in zip((vv, vh, vv - vh), RADAR_RANGE, strict=True)]
    return _image(np.stack(layers, axis=-1), sample["s1_valid"][date])


def radar_date(sample: Sample) -> int:
    """Number of the radar date with most pixels."""
    return int(sample["s1_valid"].sum(axis=(1, 2)).argmax())


def _image(scaled: np.ndarray, valid: np.ndarray) -> np.ndarray:
    pixels = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    pixels[~valid] = GREY
    return pixels


def _charts(sample: Sample) -> tuple[list, list]:
    """Curves of a point series: NDVI by date, and VV and VH by date -> two lists of (date texts, values)."""
    optics, radars = [], []
    if sample["s2"] is not None:
        red, near = (sample["s2"][:, S2_BANDS.index(b), 0, 0].astype(float) for b in ("B04", "B08"))
        keep = sample["s2_valid"][:, 0, 0] & (red + near > 0)
        dates = [d for d, k in zip(sample["s2_dates"], keep, strict=True) if k]
        optics = [(dates, ((near - red) / np.where(keep, near + red, 1))[keep])]
    if sample["s1"] is not None:
        keep = sample["s1_valid"][:, 0, 0]
        dates = [d for d, k in zip(sample["s1_dates"], keep, strict=True) if k]
        radars = [(dates, sample["s1"][keep, channel, 0, 0]) for channel in (0, 1)]
    return optics, radars


def _draw_chart(curves: list, low: float, high: float, unit: str, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _PAPER)
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = 30, size - 6, 8, size - 20
    for step in range(6):
        y = bottom - (bottom - top) * step / 5
        draw.line((left, y, right, y), fill=(225, 225, 225))
        draw.text((left - 4, y), f"{low + (high - low) * step / 5:g}", fill=_FAINT, anchor="rm", font=_font(9))
    days = np.concatenate([np.array(dates, "datetime64[D]") for dates, _ in curves])
    first, last = days.min(), days.max()
    span = max(1, int((last - first).astype(int)))
    for (dates, values), colour in zip(curves, _LINES, strict=False):
        x = left + 4 + (np.array(dates, "datetime64[D]") - first).astype(int) / span * (right - left - 8)
        y = bottom - np.clip((values - low) / (high - low), 0, 1) * (bottom - top)
        points = list(zip(x.tolist(), y.tolist(), strict=True))
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for px, py in points:
            draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=colour)
    draw.text((left, size - 4), str(first)[:7], fill=_FAINT, anchor="ls", font=_font(9))
    draw.text((right, size - 4), str(last)[:7], fill=_FAINT, anchor="rs", font=_font(9))
    draw.text((right, top), unit, fill=_INK, anchor="rt", font=_font(10))
    return image


def _panels(sample: Sample, size: int) -> list[tuple[str, Image.Image]]:
    """(label, picture) from top to bottom: charts of a point, or optics in both colours and radar."""
    present = sample["s2"] if sample["s1"] is None else sample["s1"]
    if present.shape[2:] == (1, 1):
        optics, radars = _charts(sample)
        upper = _draw_chart(optics, -0.25, 1, "NDVI", size) if optics and len(optics[0][0]) else None
        lower = _draw_chart(radars, -30, 0, "VV blue, VH red, dB", size) if radars and len(radars[0][0]) else None
        return [("NDVI", upper or _empty("no optics", size)), ("backscatter", lower or _empty("no radar", size))]
    date, extent = optical_date(sample), f"{max(present.shape[2:]) * sample['gsd']:.0f} m"
    day = None if date is None else sample["s2_dates"][date]
    radar_day = None if sample["s1"] is None else sample["s1_dates"][radar_date(sample)]
    return [
        (label, _empty(missing, size) if pixels is None else _noted(_fit(pixels, size), day, extent))
        for label, pixels, missing, day in (
            ("true colour", true_colour(sample), "no optics", day),
            ("false colour", false_colour(sample), "no near infrared", day),
            ("radar", radar(sample), "no radar", radar_day),
        )
    ]


def _noted(image: Image.Image, day: str, extent: str) -> Image.Image:
    """Date at the left, length of the longer side at the right."""
    draw, style = ImageDraw.Draw(image), {"font": _font(11), "stroke_width": 2, "stroke_fill": _INK}
    draw.text((4, image.height - 4), day[:10], fill=_PAPER, anchor="ls", **style)
    draw.text((image.width - 4, image.height - 4), extent, fill=_PAPER, anchor="rs", **style)
    return image


def _draw_rings(image: Image.Image, rings: Sequence[np.ndarray], shape: tuple[int, int]) -> None:
    """Outlines in (column, row) of a picture of `shape` rows and columns, as `_fit` placed it."""
    scale = image.width / max(shape)
    origin = (image.width - scale * shape[1]) / 2, (image.height - scale * shape[0]) / 2
    draw = ImageDraw.Draw(image)
    for colour, width in ((_INK, 4), (_OUTLINE, 2)):
        for ring in rings:
            draw.line([tuple(point) for point in ring * scale + origin], fill=colour, width=width, joint="curve")


def _fit(pixels: np.ndarray, size: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = size / max(image.size)
    shape = tuple(max(1, round(n * scale)) for n in image.size)
    image = image.resize(shape, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
    canvas = Image.new("RGB", (size, size), _PAPER)
    canvas.paste(image, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return canvas


def _empty(text: str, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), (238, 238, 238))
    ImageDraw.Draw(image).text((size / 2, size / 2), text, fill=_FAINT, anchor="mm", font=_font(13))
    return image


def _font(size: int):
    return ImageFont.load_default(size=size)


def _shorten(text: str, width: float, font) -> str:
    """Cut the middle out of a text until it fits: ids differ at both ends."""
    keep = len(text)
    short = text
    while font.getlength(short) > width and keep > 4:
        keep -= 1
        short = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
    return short


@dataclasses.dataclass(frozen=True)
class Shown:
    """One item of a sheet: its sample, up to three lines of text, and outlines (N, 2) of (column, row) in pixels."""

    sample: Sample
    caption: Sequence[str]
    rings: Sequence[np.ndarray] = ()


def similar_sheet(rows: Sequence[Sequence[Shown]], path: str | os.PathLike) -> None:
    """Draw queries with their neighbours: one row a query, which stands framed at the left.

    Args:
        rows: for each query, the query and then its neighbours.
        path: PNG to write.
    """
    panels = [[_panels(item.sample, CELL) for item in row] for row in rows]
    columns, high = max(map(len, rows)), max(len(column) for row in panels for column in row)
    row_height = high * (CELL + 2) + CAPTION + 2 * GAP
    margin = 2 * GAP + 12
    # The query stands apart from its neighbours by a wider gap.
    x_of = [margin + column * (CELL + GAP) + (2 * GAP if column else 0) for column in range(columns)]
    sheet = Image.new("RGB", (x_of[-1] + CELL + GAP, HEAD + len(rows) * row_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((x_of[0], 6), "query", fill=_FRAME, font=_font(12))
    if columns > 1:
        legend = "most similar first, with cosine"
        if high == 3:
            legend += "; false colour is B08, B04, B03 (plants red); radar VV, VH, VV - VH"
        if any(item.rings for row in rows for item in row):
            legend += "; white is beyond the scene"
        draw.text((x_of[1], 6), legend, fill=_FAINT, font=_font(12))
    for number, row in enumerate(rows):
        top = HEAD + number * row_height
        for column, item in enumerate(row):
            x, shape = x_of[column], _shape(item.sample)
            for place, (label, picture) in enumerate(panels[number][column]):
                y = top + place * (CELL + 2)
                if item.rings:
                    _draw_rings(picture, item.rings, shape)
                sheet.paste(picture, (x, y))
                draw.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline=(215, 215, 215))
                if column == 0:
                    _draw_upright(sheet, label, (GAP // 2, y), CELL)
            bottom = top + len(panels[number][column]) * (CELL + 2)
            if column == 0:
                draw.rectangle((x - 3, top - 3, x + CELL + 2, bottom + 1), outline=_FRAME, width=2)
            for line, text in enumerate(item.caption[:3]):
                font = _font(12)
                draw.text((x, bottom + 6 + 15 * line), _shorten(text, CELL, font), fill=_INK, font=font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)


def _shape(sample: Sample) -> tuple[int, int]:
    return (sample["s2"] if sample["s1"] is None else sample["s1"]).shape[2:]


def _draw_upright(sheet: Image.Image, text: str, corner: tuple[int, int], length: int) -> None:
    """Text from bottom to top, in the middle of a strip of this length."""
    strip = Image.new("RGB", (length, 16), _PAPER)
    ImageDraw.Draw(strip).text((length / 2, 8), text, fill=_FAINT, anchor="mm", font=_font(12))
    sheet.paste(strip.rotate(90, expand=True), corner)


def describe_place(values: dict) -> str:
    """Place and size of an item in one line, as far as they are known."""
    lon, lat, area = (values.get(key) for key in ("lon", "lat", "area_ha"))
    parts = [] if lon is None or lat is None else [f"{lon:.4f}, {lat:.4f}"]
    return "  ".join(parts + ([] if area is None else [f"{area:.3g} ha"]))


def show(source, name: str, values: dict, score: float | None = None) -> Shown:
    """An item of a source as it is shown on a sheet: fields (`SceneFields`) with what lies around them and an outline.

    Args:
        source: as `open_source` gives it, or `SceneFields`.
        name: id of the item.
        values: what the table says of it, for its place.
        score: cosine; None for a query.

    Raises:
        DataError: the source lacks the item, or it cannot be read.
    """
    if name not in source.ids:
        raise DataError(f"the images hold no {name!r}; give what was embedded, and of fields its --id-column")
    number = source.ids.index(name)
    sample, rings = source.view(number) if hasattr(source, "view") else (source[number], ())
    lines = ([] if score is None else [f"{score:.3f}"]) + [name, describe_place(values or sample)]
    return Shown(sample, lines, rings)


def draw_similar(source, queries: Sequence[str | Shown], found, path: str | os.PathLike) -> None:
    """Draw a sheet of queries and their neighbours from the images they were embedded from.

    Args:
        source: as `open_source` gives it, or `SceneFields`.
        queries: M items: ids of the source, or what is not of the source as it is to be shown (`show`).
        found: `Neighbours` of these queries.
        path: PNG to write.

    Raises:
        DataError: the source lacks one of the items, or it cannot be read.
    """
    about = iter(found.metadata.to_pylist())
    rows = []
    for query, names, scores in zip(queries, found.ids, found.scores, strict=True):
        row = [query if isinstance(query, Shown) else show(source, query, {})]
        rows.append(row + [show(source, n, next(about), float(s)) for n, s in zip(names, scores, strict=True)])
    similar_sheet(rows, path)


def draw_items(source, ids: Sequence[str], captions: Sequence[str], path: str | os.PathLike, columns: int = 8) -> None:
    """Draw a sheet of items in reading order, such as those to label next.

    Args:
        source: as `open_source` gives it.
        ids: of N items of the source.
        captions: N texts of one or two lines.
        path: PNG to write.
        columns: most items side by side.

    Raises:
        DataError: the source lacks one of the items, or it cannot be read.
    """
    numbers = {name: n for n, name in enumerate(source.ids)}
    missing = [name for name in ids if name not in numbers]
    if missing:
        raise DataError(f"the images hold no {missing[0]!r}; give the folder or table that was embedded")
    panels = [_panels(source[numbers[name]], CELL) for name in ids]
    high = max(map(len, panels))
    columns, height = min(columns, len(ids)), high * (CELL + 2) + CAPTION + 2 * GAP
    lines = -(-len(ids) // columns)
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + lines * height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(12)
    for place, caption in enumerate(captions):
        x, top = GAP + place % columns * (CELL + GAP), GAP + place // columns * height
        for number, (_, panel) in enumerate(panels[place]):
            y = top + number * (CELL + 2)
            sheet.paste(panel, (x, y))
            draw.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline=(215, 215, 215))
        for line, text in enumerate(caption.split("\n")[:2]):
            draw.text((x, top + high * (CELL + 2) + 6 + 15 * line), _shorten(text, CELL, font), fill=_INK, font=font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)


__all__ = [
    "Shown", "draw_items", "draw_similar", "false_colour", "radar", "show", "similar_sheet", "true_colour",
]  # fmt: skip
