"""Pictures of samples: true colour, radar, line charts of series, and sheets of similar items."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.sample import Sample
from .errors import DataError
from .sensors import S2_BANDS

GREY = 128
CELL, GAP, CAPTION = 176, 8, 40
# Digital numbers shown as white: bright dry land; water stays dark instead of being stretched to noise.
WHITE_AT = 2600
# Backscatter in dB from black to white: VV, VH, and their difference.
RADAR_RANGE = ((-20.0, 0.0), (-27.0, -6.0), (2.0, 13.0))
_INK, _FAINT, _PAPER, _FRAME = (25, 25, 25), (150, 150, 150), (255, 255, 255), (200, 80, 20)
_LINES = ((30, 110, 200), (210, 90, 30))


def true_colour(sample: Sample) -> np.ndarray | None:
    """B04, B03, B02 of the clearest date -> uint8 (H, W, 3), grey where invalid; None without optics."""
    if sample["s2"] is None:
        return None
    channels = [S2_BANDS.index(name) for name in ("B04", "B03", "B02")]
    usable = sample["s2_valid"] & sample["s2_bands"][:, channels].all(axis=1)[:, None, None]
    date = int(usable.sum(axis=(1, 2)).argmax())
    valid = usable[date]
    if not valid.any():
        return None
    values = np.nan_to_num(sample["s2"][date, channels].astype(np.float32))
    # The atmosphere's share, at most 1,500: the darkest pixels of each band become black.
    low = np.array([min(np.percentile(band[valid], 1), 1500.0) for band in values])[:, None, None]
    white = max(WHITE_AT, float(np.percentile(values[:, valid], 99)))
    scaled = np.clip((values - low) / (white - low), 0, 1) ** (1 / 1.6)
    return _image(np.moveaxis(scaled, 0, -1), valid)


def radar(sample: Sample) -> np.ndarray | None:
    """VV, VH and VV - VH of the fullest date -> uint8 (H, W, 3) at fixed ranges in dB; None without radar."""
    if sample["s1"] is None:
        return None
    date = int(sample["s1_valid"].sum(axis=(1, 2)).argmax())
    vv, vh = np.nan_to_num(sample["s1"][date])
    layers = [(x - low) / (high - low) for x, (low, high) in zip((vv, vh, vv - vh), RADAR_RANGE, strict=True)]
    return _image(np.stack(layers, axis=-1), sample["s1_valid"][date])


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


def _panels(sample: Sample, size: int) -> tuple[Image.Image, Image.Image]:
    """Optics above, radar below."""
    present = sample["s2"] if sample["s1"] is None else sample["s1"]
    if present.shape[2:] == (1, 1):
        optics, radars = _charts(sample)
        upper = _draw_chart(optics, -0.25, 1, "NDVI", size) if optics and len(optics[0][0]) else None
        lower = _draw_chart(radars, -30, 0, "VV blue, VH red, dB", size) if radars and len(radars[0][0]) else None
    else:
        upper, lower = (None if a is None else _fit(a, size) for a in (true_colour(sample), radar(sample)))
    return upper or _empty("no optics", size), lower or _empty("no radar", size)


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


def similar_sheet(rows: Sequence[Sequence[tuple[Sample, str]]], path: str | os.PathLike) -> None:
    """Draw queries with their neighbours: one row a query, which stands framed at the left.

    Args:
        rows: for each query, the query and then its neighbours as (sample, caption of one or two lines).
        path: PNG to write.
    """
    columns, head = max(len(row) for row in rows), 26
    row_height = 2 * CELL + CAPTION + 3 * GAP
    # The query stands apart from its neighbours by a wider gap.
    x_of = [GAP + column * (CELL + GAP) + (2 * GAP if column else 0) for column in range(columns)]
    sheet = Image.new("RGB", (x_of[-1] + CELL + GAP, head + len(rows) * row_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), "query", fill=_FRAME, font=_font(12))
    if columns > 1:
        legend = "most similar first, with cosine; optics above, radar (VV, VH, VV - VH) below"
        draw.text((x_of[1], 6), legend, fill=_FAINT, font=_font(12))
    for number, row in enumerate(rows):
        top = head + number * row_height
        for column, (sample, caption) in enumerate(row):
            x = x_of[column]
            upper, lower = _panels(sample, CELL)
            sheet.paste(upper, (x, top))
            sheet.paste(lower, (x, top + CELL + 2))
            for y in (top, top + CELL + 2):
                draw.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline=(215, 215, 215))
            if column == 0:
                draw.rectangle((x - 3, top - 3, x + CELL + 2, top + 2 * CELL + 4), outline=_FRAME, width=2)
            for line, text in enumerate(caption.split("\n")[:2]):
                font = _font(12)
                draw.text((x, top + 2 * CELL + 8 + 15 * line), _shorten(text, CELL, font), fill=_INK, font=font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)


def draw_similar(source, queries: Sequence[str], found, path: str | os.PathLike) -> None:
    """Draw a sheet of queries and their neighbours from the images they were embedded from.

    Args:
        source: as `open_source` gives it.
        queries: ids of M items of the source.
        found: `Neighbours` of these queries.
        path: PNG to write.

    Raises:
        DataError: the source lacks one of the items, or it cannot be read.
    """
    numbers = {name: n for n, name in enumerate(source.ids)}
    missing = [name for line in (queries, *found.ids) for name in line if name not in numbers]
    if missing:
        raise DataError(f"the images hold no {missing[0]!r}; give the folder or table that was embedded")
    rows = [
        [(source[numbers[query]], query)]
        + [(source[numbers[name]], f"{score:.3f}\n{name}") for name, score in zip(names, scores, strict=True)]
        for query, names, scores in zip(queries, found.ids, found.scores, strict=True)
    ]
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
    columns, height = min(columns, len(ids)), 2 * CELL + CAPTION + 2 * GAP
    lines = -(-len(ids) // columns)
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + lines * height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(12)
    for place, (name, caption) in enumerate(zip(ids, captions, strict=True)):
        x, top = GAP + place % columns * (CELL + GAP), GAP + place // columns * height
        for y, panel in zip((top, top + CELL + 2), _panels(source[numbers[name]], CELL), strict=True):
            sheet.paste(panel, (x, y))
            draw.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline=(215, 215, 215))
        for line, text in enumerate(caption.split("\n")[:2]):
            draw.text((x, top + 2 * CELL + 8 + 15 * line), _shorten(text, CELL, font), fill=_INK, font=font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)


__all__ = ["draw_items", "draw_similar", "radar", "similar_sheet", "true_colour"]
