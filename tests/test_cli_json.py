"""What holds for every verb: one JSON object on stdout, errors on stderr, help with examples that parse."""

import argparse
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from croplem_hf import generate_scene
from croplem_hf.cli import main, make_parser

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture
def table(tmp_path):
    """A foreign table of embeddings of two regions and two classes."""
    rng, n = np.random.default_rng(0), 80
    label = np.array(["cropland", "other"])[np.arange(n) % 2]
    vectors = (rng.normal(size=(n, 8)) + 2 * (label == "cropland")[:, None]).astype(np.float32)
    columns = {"region": np.array(["north", "south"])[np.arange(n) // 2 % 2], "label": label, "lon": [35.1] * n,
               "lat": [0.5] * n, "block": [f"b{k // 8}{k // 2 % 2}" for k in range(n)]}  # fmt: skip
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
    pq.write_table(pa.table({"id": [f"p{k}" for k in range(n)], "embedding": embedding} | columns),
                   tmp_path / "t.parquet")  # fmt: skip
    return tmp_path / "t.parquet"


def test_verbs_on_data_and_imagery_answer_in_json(tmp_path, answer):
    tree, shards, out = tmp_path / "tree", tmp_path / "shards", tmp_path / "e.parquet"
    found = answer("data", "sample", tree, "--scenes", 2, "--patches", 4, "--size", 32)
    items = found["items"]
    assert items > 4 and found["bands"]["VV"]["mean"] < -5 and Path(found["labels"]).is_file()
    next(tree.rglob("*_s2_*.tif")).write_bytes(b"")
    found = answer("data", "check", tree, "--workers", 1, code=3)
    assert (found["items"], found["items_with_errors"]) == (items, 1)
    found = answer("data", "build", tree, shards, "--workers", 1, "--verify")
    assert (sum(found["splits"].values()), found["skipped"], found["wrong"]) == (items - 1, 1, [])
    found = answer("embed", tree, out)
    assert (found["rows"], found["skipped"]) == (items - 1, 1) and Path(found["skipped_list"]).is_file()
    assert answer("info", out)["rows"] == found["rows"] and answer("info")["kind"] == "library"
    scene = generate_scene(tmp_path / "scene", "iran", size=32)
    found = answer("map", scene, tmp_path / "m.tif", "--embeddings", "--bands", 2, "--sensors", "s2")
    assert (found["height"], found["width"], found["bands"], found["classes"]) == (4, 4, 2, None)
    assert Path(found["basis"]).is_file()


def test_verbs_on_tables_answer_in_json(table, tmp_path, answer):
    index, state = tmp_path / "i", tmp_path / "s"
    assert answer("index", table, index) == {
        "out": str(index), "rows": 80, "dim": 8, "preset": "default", "recall": None
    }  # fmt: skip
    found = answer("similar", index, "--lonlat", "35.1,0.5", "-k", 2)
    assert found["near"][0]["metres"] == 0 and [row["rank"] for row in found["neighbours"][:2]] == [1, 2]
    found = answer("suggest", table, "-n", 5, "--state", state, "--out", tmp_path / "n.csv")
    assert (found["waiting"], found["labelled"], len(found["picks"])) == (5, 0, 5) and found["picks"][0]["reason"]
    assert Path(found["map"]).is_file()
    found = answer("fit", table, "--label-column", "label", tmp_path / "h")
    assert found["classes"] == {"cropland": 40, "other": 40} and found["calibrated"] is True
    found = answer("evaluate", table, "--label-column", "label", "--out", tmp_path / "r", "--seeds", 0)
    assert [row["region"] for row in found["transfer"]] == ["north", "south"] and found["small_regions"] == {}
    assert 0.5 < found["within"][0]["auc"]["low"] < found["within"][0]["auc"]["value"] <= 1
    mean, each = found["transfer_mean"]["auc"], [row["auc"]["value"] for row in found["transfer"]]
    assert mean["regions"] == 2 and mean["mean"] == pytest.approx(np.mean(each)) and mean["worst"] == min(each)
    assert mean["low"] <= mean["mean"] <= mean["high"] and set(found["within_mean"]) == {"auc", "balanced_accuracy"}
    found = answer("push", "index", index, "me/i", "--licence", "cc-by-4.0", "--dry-run")
    assert found["url"] is None and found["files"]["README.md"] == len(found["card"].encode())


def test_an_error_is_one_line_on_stderr_also_with_json(tmp_path, capsys):
    for argv in (["index", "nothing.parquet", str(tmp_path / "i")], ["data", "check", "nothing"]):
        assert main([*argv, "--json"]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("croplem ")


def test_nothing_else_reaches_stdout(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("croplem_hf.info.describe", lambda path: print("by the way") or {"kind": "x"})
    assert main(["info", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"kind": "x"} and "by the way" in shown.err


def verbs(parser=None, words=()):
    """Words and parser of every verb."""
    for action in (parser or make_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield (*words, name), below
                yield from verbs(below, (*words, name))


def parses(line):
    words = shlex.split(line, comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    assert words[0] == "croplem"
    main_parser = make_parser()
    main_parser.parse_args(words[1:])


@pytest.mark.parametrize("words", [words for words, _ in verbs() if words != ("data",)], ids=" ".join)
def test_the_help_of_every_verb_has_examples_that_parse(words):
    text = dict(verbs())[words].format_help()
    lines = re.findall(r"^  (croplem .*)", text.partition("examples:")[2], re.MULTILINE)
    assert lines and all(line.startswith(f"croplem {' '.join(words)}") for line in lines)
    for line in lines:
        parses(line)
    assert ("keys of --json:" in text) == (words != ("completion",))


def test_the_examples_of_the_command_the_readme_and_the_pages_parse():
    lines = re.findall(r"^  (croplem .*)", make_parser().format_help().partition("examples:")[2], re.MULTILINE)
    pages = [README, *README.parent.glob("docs/**/*.md"), *README.parent.glob("examples/**/*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    lines += re.findall(r"^(croplem .*)", "\n".join(re.findall("```bash\n(.*?)```", text, re.DOTALL)), re.MULTILINE)
    assert len(lines) > 50
    for line in lines:
        parses(line)


@pytest.mark.parametrize(("argv", "listed"), [
    ([], {words[0] for words, _ in verbs()}), (["data"], ["check", "build", "sample", "download"]),
    (["push"], ["model", "index", "report"]), (["export"], ["onnx"]),
])  # fmt: skip
def test_without_arguments_it_says_what_there_is(argv, listed, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for name in listed:
        assert re.search(rf"^ +{name}  +\w.*$", shown.err, re.MULTILINE)
    lines = shown.err.partition("  VERB\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) in (0, len(listed)), "a line for each verb"
