"""The pieces of a report: escaped, whole, without anything to load."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from croplem_hf.errors import DataError
from croplem_hf.evaluation import (
    curve_figure,
    image,
    image_section,
    key_facts,
    paragraph,
    region_figure,
    region_table,
    reliability_figure,
    section,
    table,
    write_report,
)
from croplem_hf.evaluation.report import percent

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Texts, and the pictures of a page; fails where tags do not match."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.images, self.numbers = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        self.right = ("class", "number") in attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)
            if self.open[-1] == "td" and self.right:
                self.numbers.append(data)


def svg(html):
    (picture,) = Checker(html).images
    kind, _, data = picture["src"].partition(";base64,")
    assert kind == "data:image/svg+xml" and picture["alt"] and int(picture["width"]) > 100
    return ET.fromstring(base64.b64decode(data)), picture["alt"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.7214, "72.1"),
        ({"value": 0.721, "low": 0.69, "high": 0.752}, "72.1 (69.0-75.2)"),
        ({"mean": 0.721, "low": 0.69, "high": 0.752}, "72.1 (69.0-75.2)"),
        ({"value": 0.5, "low": float("nan"), "high": float("nan")}, "50.0"),
        ({"value": float("nan"), "low": 0.1, "high": 0.2}, "–"),
        (None, "–"),
    ],
)
def test_shares_are_written_with_their_intervals(value, text):
    assert percent(value) == text


def test_differences_have_signs():
    assert percent({"mean": -0.012, "low": -0.03, "high": 0.004}, signed=True) == "-1.2 (-3.0 to +0.4)"


@given(st.text(max_size=20), st.text(max_size=20))
def test_texts_are_escaped(name, text):
    page = section(name, paragraph(text), key_facts({name: text}), table([name, "x"], [[text, 1]], caption=name))
    checker = Checker(page)
    assert set(checker.open) == set()
    if text.strip() and "\r" not in text and "\x00" not in text:
        assert text in "".join(checker.texts)


def test_markup_in_texts_stays_text(tmp_path):
    evil = '<script>alert("x")</script>&'
    path = write_report(tmp_path / "a" / "r.html", evil, [section(evil, paragraph(evil))], subtitle=evil)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") == 5
    assert [file.name for file in path.parent.iterdir()] == ["r.html"]


def test_a_page_loads_nothing(tmp_path):
    value = {"value": 0.7, "low": 0.6, "high": 0.8}
    rows = [{"region": "a", "n": 40, "blocks": 9, "auc": value, "accuracy": value}]
    points = [{"n_labels": n, "mean": 0.5, "low": 0.4, "high": 0.6} for n in (10, 20)]
    bins = [{"predicted": 0.2, "observed": 0.3, "n": 4}, {"predicted": 0.8, "observed": 0.7, "n": 9}]
    parts = [
        region_table(rows, metrics=("auc", "accuracy")),
        curve_figure({"random": points}, metric="macro_f1", level=0.7, level_name="all"),
        reliability_figure({"here": bins}, of="crop"),
        region_figure({"here": rows}, metric="auc", level=0.5),
        image(np.zeros((4, 4, 3), np.uint8), alt="black"),
    ]
    page = write_report(tmp_path / "r.html", "t", [section("s", *parts)]).read_text()
    checker = Checker(page)
    assert len(checker.images) == 4
    assert all(picture["src"].startswith("data:") and picture["alt"] for picture in checker.images)
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)", re.sub(r'src="data:[^"]*"', "", page))
    assert "<link" not in page and "@import" not in page


def test_columns_of_numbers_stand_at_the_right():
    page = table(["Name", "n", "share", "note"], [["1", 1200, "72.1 (69.0-75.2)", "few"], ["2", 3, "–", "> 500"]])
    assert Checker(page).numbers == ["1,200", "72.1 (69.0-75.2)", "3", "–"]
    assert Checker(table(["k", "v"], [[0, 0.51234], [10, None]])).numbers == ["0", "0.512", "10", "–"]


def test_a_table_of_ragged_rows_is_refused():
    with pytest.raises(DataError, match="a row of the table has 1 cells for 2 columns"):
        table(["a", "b"], [["x"]])


def test_region_table_sets_means_apart():
    rows = [{"region": "a", "n": 1, "blocks": 1, "auc": {"value": 0.5, "low": 0.4, "high": 0.6}}]
    page = region_table(rows, metrics=["auc"], means={"mean": {"auc": 0.5}, "chance": {"auc": float("nan")}})
    kinds = re.findall(r"<tr( class=\"\w+\")?><td>(\w+)</td>", page)
    assert kinds == [("", "a"), (' class="strong"', "mean"), (' class="faint"', "chance")]


def test_curves_are_drawn_and_told():
    curves = {
        name: [{"n_labels": n, "mean": height, "low": low, "high": 1.2} for n in (10, 100)]
        for name, height, low in [("random", 0.5, 0.4), ("bandit", 0.7, float("nan"))]
    }
    tree, alt = svg(curve_figure(curves, metric="macro_f1"))
    assert alt == "Learning curves of Macro-F1 over labels; at the last budget: random 50.0, bandit 70.0."
    assert tree.tag.endswith("svg") and len(list(tree.iter())) > 50


def test_figures_are_the_same_every_time():
    bins = [{"predicted": 0.2, "observed": 0.35, "n": 4}]
    assert reliability_figure({"a": bins}, of="crop") == reliability_figure({"a": bins}, of="crop")
    assert "largest gap of a bin: a 0.15" in svg(reliability_figure({"a": bins}, of="crop"))[1]


def test_regions_are_drawn_without_intervals_too():
    nothing = float("nan")
    rows = [
        {"region": name, "auc": {"value": value, "low": nothing, "high": nothing}}
        for name, value in [("a", 0.9), ("b", 0.6), ("c", nothing)]
    ]
    tree, alt = svg(region_figure({"x": rows, "y": rows[:2]}, metric="auc", level=0.5))
    assert alt == "AUC by region; the worst is b, 60.0." and tree is not None


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_pixels_and_files_are_embedded(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for picture in (pixels, tmp_path / "a.png", str(tmp_path / "a.png")):
        (found,) = Checker(image_section("Map", picture, alt='a "map"', caption="c & d")).images
        data = base64.b64decode(found["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
        assert found["alt"] == 'a "map"'


def test_pictures_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="a.png: not a PNG file"):
        image(tmp_path / "a.png", alt="")
    with pytest.raises(DataError, match="no such picture"):
        image(tmp_path / "b.png", alt="")
    with pytest.raises(DataError, match=r"uint8 .* found float64 \(2, 2\)"):
        image(np.zeros((2, 2)), alt="")
