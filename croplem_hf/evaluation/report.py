"""A report in one HTML file: text, tables and figures, with nothing to load from elsewhere.

    write_report("report.html", "Cropland in Sudan", [
        section("What was found", paragraph("..."), region_table(rows)),
        image_section("Map", "map.png", alt="map of cropland", caption="..."),
    ])

What goes into a section is HTML made by the functions here and in `figures`, which escape the texts they are given.
"""

import base64
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from ..plain import plain
from .fairness import METRICS

NAMES = {
    "auc": "AUC", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro-F1", "accuracy": "Accuracy",
    "worst_region_accuracy": "Accuracy in the worst region",
}  # fmt: skip
_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #222; font: 16px/1.55 system-ui, "Segoe UI", Roboto, Helvetica, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: 1rem; border-top: 1px solid #e3e3e3; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .6rem 0; max-width: 46rem; }
.subtitle, .note, figcaption, caption { color: #5a5a5a; font-size: .88rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; max-width: 46rem; }
th, td { padding: .32rem .8rem; border-bottom: 1px solid #ececec; text-align: left; white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #ccc; vertical-align: bottom; white-space: normal; }
th.number { max-width: 9rem; }
ul.plain { max-width: 46rem; padding-left: 1.2rem; }
th.number, td.number { text-align: right; }
tr.strong td { font-weight: 600; border-top: 2px solid #ccc; }
tr.faint td { color: #6f6f6f; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
ul.facts { list-style: none; padding: 0; margin: 1.2rem 0; display: grid; gap: .8rem; }
ul.facts { grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); }
ul.facts li { background: #f5f7f8; border-radius: .4rem; padding: .7rem .9rem; font-size: .85rem; color: #444; }
ul.facts b { display: block; font-size: 1.2rem; color: #111; line-height: 1.3; }
ul.facts small { font-size: .8rem; font-weight: 400; white-space: nowrap; }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""


def write_report(path: str | os.PathLike, title: str, sections: Sequence[str], *, subtitle: str = "") -> Path:
    """Write a report, whole or not at all.

    Args:
        path: HTML file to write; its folder is made.
        title: heading, text.
        sections: what `section` gives.
        subtitle: line below the heading, text.
    """
    path = Path(path)
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_CSS}</style>\n</head>\n'
        f'<body>\n<main>\n<h1>{html.escape(title)}</h1>\n<p class="subtitle">{html.escape(subtitle)}</p>\n'
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )
    write_text(path, page)
    return path


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: str | os.PathLike, figures: Mapping) -> None:
    """Write figures as JSON, whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(plain(figures), indent=1, allow_nan=False))


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, *, note: bool = False) -> str:
    """A paragraph; a note is set smaller."""
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{html.escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """A list of texts."""
    return '<ul class="plain">' + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def key_facts(facts: Mapping[str, str]) -> str:
    """A few figures in large type, each with the text that says what it is: `{"unseen region": "72.1"}`."""
    items = []
    for name, value in facts.items():
        value, bracket, interval = html.escape(value).partition(" (")
        small = f" <small>({interval}</small>" if bracket else ""
        items.append(f"<li><b>{value}{small}</b>{html.escape(name)}</li>")
    return '<ul class="facts">' + "".join(items) + "</ul>"


def percent(value: float | Mapping | None, *, signed: bool = False) -> str:
    """A share as "72.1", one with an interval as "72.1 (69.0-75.2)", nothing as a dash.

    Args:
        value: share from 0 to 1, or a dict of `value` or `mean` with `low` and `high`; NaN and None are nothing.
        signed: with a sign and "to" between the bounds, for differences.
    """
    bounds = None
    if isinstance(value, Mapping):
        bounds = [value.get("low"), value.get("high")]
        value = value.get("value", value.get("mean"))
    if value is None or math.isnan(value):
        return "–"
    form = "+.1f" if signed else ".1f"
    text = f"{100 * value:{form}}"
    if bounds and not any(bound is None or math.isnan(bound) for bound in bounds):
        low, high = (f"{100 * bound:{form}}" for bound in bounds)
        text += f" ({low}{' to ' if signed else '-'}{high})"
    return text


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence],
    *,
    caption: str = "",
    strong: Sequence[int] = (),
    faint: Sequence[int] = (),
) -> str:
    """A table; columns of numbers, shares with intervals and dashes stand at the right.

    Args:
        columns: headings; no line of headings where all are empty. Text in the first column names the row.
        rows: cells, text or numbers (whole numbers get separators, others three digits).
        caption: text above.
        strong, faint: numbers of rows to set off.

    Raises:
        DataError: a row has more or fewer cells than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise DataError(f"a row of the table has {len(row)} cells for {len(columns)} columns")
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[k]) for row in cells) for k in range(len(columns))]
    if any(isinstance(row[0], str) for row in rows):
        numeric[0] = False

    def line(tag: str, texts: Sequence[str], kind: str = "") -> str:
        marks = (' class="number"' if number else "" for number in numeric)
        inner = "".join(f"<{tag}{m}>{html.escape(t)}</{tag}>" for t, m in zip(texts, marks, strict=True))
        return f"<tr{kind}>{inner}</tr>"

    kinds = {**{k: ' class="faint"' for k in faint}, **{k: ' class="strong"' for k in strong}}
    body = "\n".join(line("td", row, kinds.get(k, "")) for k, row in enumerate(cells))
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    head = above + (f"<thead>{line('th', columns)}</thead>" if any(columns) else "")
    return f'<div class="scroll"><table>{head}\n<tbody>\n{body}\n</tbody></table></div>'


def region_table(
    rows: Sequence[Mapping], *, metrics: Sequence[str] = METRICS, means: Mapping[str, Mapping] | None = None,
    caption: str = "",
) -> str:  # fmt: skip
    """Scores by region, in percent with intervals.

    Args:
        rows: what `region_scores` gives.
        metrics: columns.
        means: rows below, such as means over regions and baselines: metric -> value by name of the row.
        caption: text above.
    """
    lines = [[row["region"], row["n"], row["blocks"], *(percent(row[m]) for m in metrics)] for row in rows]
    below = [[name, "", "", *(percent(values.get(m)) for m in metrics)] for name, values in (means or {}).items()]
    columns = ["Region", "Rows", "Blocks", *(NAMES.get(m, m) for m in metrics)]
    first, last = len(lines), len(lines) + len(below)
    strong = [first] if below else ()
    return table(columns, lines + below, caption=caption, strong=strong, faint=range(first + 1, last))


def image(picture: str | os.PathLike | np.ndarray, *, alt: str, caption: str = "", width: int | None = None) -> str:
    """A picture in the page.

    Args:
        picture: a PNG file, or uint8 pixels (H, W), (H, W, 3) or (H, W, 4).
        alt: what it shows, for those who cannot see it.
        caption: text below.
        width: in CSS pixels; its own where None.

    Raises:
        DataError: no such file, no PNG, or an array of another kind.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
            raise DataError(f"a picture is uint8 (H, W), (H, W, 3) or (H, W, 4), found {picture.dtype} {picture.shape}")
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        data = buffer.getvalue()
    else:
        path = Path(picture)
        if not path.is_file():
            raise DataError(f"{path}: no such picture")
        data = path.read_bytes()
        if not data.startswith(b"\x89PNG\r\n\x1a\n"):
            raise DataError(f"{path}: not a PNG file")
    return embed("image/png", data, alt=alt, caption=caption, width=width)


def image_section(title: str, picture: str | os.PathLike | np.ndarray, *, alt: str, caption: str = "") -> str:
    """A section of one picture (`image`)."""
    return section(title, image(picture, alt=alt, caption=caption))


def embed(kind: str, data: bytes, *, alt: str, caption: str = "", width: int | None = None) -> str:
    """A picture of that MIME type as part of the page."""
    size = f' width="{width}"' if width else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt="{html.escape(alt)}"{size}>{below}</figure>'


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    """A number, with an interval or not, a bound ("> 500"), a dash, or nothing."""
    return text in ("", "–") or text.lstrip("+-<> ")[:1].isdigit()


__all__ = [
    "NAMES", "bullets", "embed", "image", "image_section", "key_facts", "paragraph", "percent", "region_table",
    "section", "table", "write_json", "write_report", "write_text",
]  # fmt: skip
