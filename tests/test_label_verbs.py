"""suggest, fit, map, evaluate and data sample, through the command line."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from croplem_hf import CoverageBandit, EmbeddingIndex, LogisticHead, generate_scene, load_head, read_table
from croplem_hf.active.suggest import STRATEGIES, allocate
from croplem_hf.cli import main
from croplem_hf.data.geotiff import read_geotiff
from croplem_hf.evaluation.report import percent
from croplem_hf.suggest_verb import SUGGEST_STRATEGIES


def write_labels(path, rows, header=("id", "label")):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return str(path)


def read_rows(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Embeddings of three invented regions with two classes, as a foreign table, and the true labels."""
    rng = np.random.default_rng(0)
    n = 180
    label = np.array(["cropland", "other"])[rng.integers(0, 2, n)]
    region = np.array(["north", "south", "east"])[np.arange(n) % 3]
    vectors = rng.normal(size=(n, 8)) + 2 * (label == "cropland")[:, None] * np.eye(8)[0]
    flat = pa.array(vectors.astype(np.float32).ravel())
    columns = {
        "id": [f"p{i}" for i in range(n)],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, 8),
        "region": region, "label": label, "block": [f"{name}{i // 18}" for i, name in enumerate(region)],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path), dict(zip(columns["id"], label.tolist(), strict=True))


def test_a_campaign_goes_on_with_the_labels_that_came(pool, tmp_path, capsys):
    table, truth = pool
    out, state = tmp_path / "next.csv", tmp_path / "campaign.state"
    assert main(["suggest", table, "-n", "10", "--out", str(out), "--state", str(state)]) == 0
    first = read_rows(out)
    assert len(first) == 10 and all(row["label"] == "" and row["reason"] for row in first)
    gains = [float(row["gain"]) for row in first]
    parts = [sum(float(row[k]) for k in ("coverage", "uncertainty", "region_weighting")) for row in first]
    np.testing.assert_allclose(gains, parts, rtol=1e-4)
    # Half of the labels come; the other half is waited for and not offered again.
    labels = write_labels(tmp_path / "labels.csv", [(row["id"], truth[row["id"]]) for row in first[:5]])
    assert main(["suggest", table, "--labels", labels, "-n", "10", "--out", str(out), "--state", str(state)]) == 0
    second = [row["id"] for row in read_rows(out)]
    assert not {row["id"] for row in first} & set(second)
    assert "5 are labelled" in capsys.readouterr().out
    assert main(["suggest", table, "-n", "5", "--out", str(out), "--state", str(state), "--seed", "9"]) == 1
    assert "seed 0" in capsys.readouterr().err


def test_a_target_is_covered_instead_of_the_table(pool, tmp_path):
    table, truth = pool
    cropland = tmp_path / "target.parquet"
    rows = pq.read_table(table)
    pq.write_table(rows.filter(pa.compute.equal(rows["label"], "cropland")), cropland)
    out = tmp_path / "next.csv"
    assert main(["suggest", table, "-n", "20", "--target", str(cropland), "--out", str(out)]) == 0
    assert sum(truth[row["id"]] == "cropland" for row in read_rows(out)) >= 14


def test_ids_and_vectors_alone_are_a_table(pool, tmp_path):
    table, labels = tmp_path / "t.parquet", write_labels(tmp_path / "labels.csv", list(pool[1].items())[:60])
    pq.write_table(pq.read_table(pool[0]).select(["id", "embedding"]), table)
    assert main(["suggest", str(table), "--where", "id=p1", "--where", "id=p2", "--out", str(tmp_path / "n.csv")]) == 0
    assert {row["id"] for row in read_rows(tmp_path / "n.csv")} == {"p1", "p2"}
    assert main(["fit", str(table), "--labels", labels, str(tmp_path / "head")]) == 0
    assert EmbeddingIndex.build(read_table(table)).query(ids=["p1"], k=3).metadata.column_names == ["id"]


def test_a_lost_sheet_is_told_and_can_be_released(pool, tmp_path, caplog, capsys):
    table, truth = pool
    sheets, state = [tmp_path / f"next{k}.csv" for k in range(3)], tmp_path / "campaign.state"
    command = ["suggest", table, "-n", "10", "--state", str(state)]
    assert main([*command, "--out", str(sheets[0])]) == 0 and "no label yet" not in caplog.text
    first = [row["id"] for row in read_rows(sheets[0])]
    labels = write_labels(tmp_path / "labels.csv", [(name, truth[name]) for name in first[:4]])
    command += ["--labels", labels, "--out"]
    assert main([*command, str(sheets[1])]) == 0
    told = "6 items of earlier sheets have no label yet and are not offered again; if a sheet was lost, release its"
    assert told in caplog.text and "--forget SHEET.csv" in caplog.text
    caplog.clear()
    # A sheet of which labels came is released as far as they did not come, and only that sheet.
    rest = str(180 - 4 - 10)
    assert main([*command, str(sheets[2]), "--forget", str(sheets[0]), "-n", rest]) == 0
    assert "10 items of earlier sheets" in caplog.text
    third, second = ({row["id"] for row in read_rows(sheet)} for sheet in (sheets[2], sheets[1]))
    assert third == set(truth) - set(first[:4]) - second
    assert main(["suggest", table, "--forget", str(sheets[0]), "--out", str(tmp_path / "x.csv")]) == 1
    assert "--forget needs --state" in capsys.readouterr().err


def test_a_class_that_comes_later_does_not_renumber_the_others(pool, tmp_path):
    table, truth = pool
    rewards = []
    # The third class sorts after the others once, before them once.
    for late in ("water", "barley"):
        state, out = tmp_path / f"{late}.state", tmp_path / f"{late}.csv"
        assert main(["suggest", table, "-n", "30", "--out", str(out), "--state", str(state)]) == 0
        known = {row["id"]: truth[row["id"]] for row in read_rows(out)}
        labels = write_labels(tmp_path / "labels.csv", known.items())
        assert main(["suggest", table, "--labels", labels, "-n", "30", "--out", str(out), "--state", str(state)]) == 0
        new = [row["id"] for row in read_rows(out)]
        known |= {name: truth[name] for name in new[:-1]} | {new[-1]: late}
        labels = write_labels(tmp_path / "labels.csv", known.items())
        assert main(["suggest", table, "--labels", labels, "-n", "5", "--out", str(out), "--state", str(state)]) == 0
        rewards.append(CoverageBandit.load(state, read_table(table).metadata["region"].to_pylist()).rewards_)
    assert len(rewards[0]) == 30
    np.testing.assert_array_equal(*rewards)


def test_labels_that_were_filled_in_are_never_replaced(pool, tmp_path, capsys):
    table, truth = pool
    out, state = tmp_path / "next.csv", tmp_path / "campaign.state"
    assert main(["suggest", table, "-n", "5", "--out", str(out)]) == 0
    assert main(["suggest", table, "-n", "5", "--out", str(out)]) == 0, "an empty sheet may be made anew"
    filled = [(row["rank"], row["id"], truth[row["id"]]) for row in read_rows(out)]
    write_labels(out, filled, ("rank", "id", "label"))
    before = out.read_bytes()
    command = ["suggest", table, "--labels", str(out), "-n", "5", "--out", str(out), "--state", str(state)]
    assert main(command) == 1 and out.read_bytes() == before
    assert "so that no label is lost" in capsys.readouterr().err
    assert not state.exists(), "what was never shown is not waited for"


@pytest.mark.parametrize("strategy", SUGGEST_STRATEGIES)
def test_every_strategy_gives_new_items_and_the_same_ones_again(pool, tmp_path, strategy):
    table, truth = pool
    labels = write_labels(tmp_path / "labels.csv", list(truth.items())[:30])
    found = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.csv"
        arguments = ["suggest", table, "--labels", labels, "-n", "12", "--out", str(out), "--strategy", strategy]
        assert main(arguments) == 0
        found.append([row["id"] for row in read_rows(out)])
    assert found[0] == found[1] and len(set(found[0])) == 12
    assert not set(found[0]) & set(list(truth)[:30])


def test_suggest_gives_what_is_left_and_then_says_so(pool, tmp_path, capsys):
    table, truth = pool
    labels, out = tmp_path / "labels.csv", str(tmp_path / "next.csv")
    write_labels(labels, list(truth.items())[:-3])
    assert main(["suggest", table, "--labels", str(labels), "-n", "10", "--out", out]) == 0
    assert "3 of 180" in capsys.readouterr().out
    write_labels(labels, truth.items())
    assert main(["suggest", table, "--labels", str(labels), "-n", "10", "--out", out]) == 1
    assert "nothing left to choose" in capsys.readouterr().err


def test_the_command_names_the_strategies_of_the_library():
    assert set(SUGGEST_STRATEGIES) == set(STRATEGIES)


@pytest.fixture(scope="module")
def placed(pool, tmp_path_factory):
    """The same pool with places and prices: three regions on one meridian."""
    table = pq.read_table(pool[0])
    rng = np.random.default_rng(1)
    north = {"north": 2.0, "south": -2.0, "east": 0.0}
    lat = np.array([north[name] for name in table["region"].to_pylist()]) + rng.normal(0, 0.05, len(table))
    columns = {"lon": 34 + rng.normal(0, 0.05, len(table)), "lat": lat, "price": 1.0 + np.arange(len(table)) % 4}
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    path = tmp_path_factory.mktemp("placed") / "placed.parquet"
    pq.write_table(table, path)
    return str(path)


def test_a_map_of_the_sheet_is_written_beside_it(placed, pool, tmp_path):
    out = tmp_path / "next.csv"
    assert main(["suggest", placed, "-n", "8", "--out", str(out)]) == 0
    found = json.loads((tmp_path / "next.geojson").read_text())
    rows = read_rows(out)
    assert [feature["id"] for feature in found["features"]] == [row["id"] for row in rows]
    for feature, row in zip(found["features"], rows, strict=True):
        assert feature["geometry"]["type"] == "Point" and feature["properties"]["reason"] == row["reason"]
        place = [float(row["lon"]), float(row["lat"])]
        np.testing.assert_allclose(feature["geometry"]["coordinates"], place, rtol=1e-6)
        assert row["sample"] == "picked"
    # A sheet without places does not keep the map of another one.
    assert main(["suggest", pool[0], "-n", "8", "--out", str(out)]) == 0
    assert not (tmp_path / "next.geojson").exists()


def test_a_foreign_map_is_not_replaced(placed, tmp_path, capsys):
    (tmp_path / "next.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert main(["suggest", placed, "-n", "8", "--out", str(tmp_path / "next.csv")]) == 1
    assert "no map of a sheet" in capsys.readouterr().err and not (tmp_path / "next.csv").exists()


def test_what_is_excluded_is_never_chosen(pool, tmp_path, capsys):
    table, truth = pool
    ids, out = tmp_path / "closed.csv", tmp_path / "next.csv"
    write_labels(ids, [(name,) for name in list(truth)[:100]], ("id",))
    arguments = ["suggest", table, "--exclude", "region=north", "--exclude-ids", str(ids), "-n", "80"]
    arguments += ["--out", str(out)]
    assert main(arguments) == 0
    found = read_rows(out)
    assert len(found) == 54, "80 rows beyond the first 100, a third of them in the north"
    assert not {row["id"] for row in found} & set(list(truth)[:100])
    assert {row["region"] for row in found} == {"south", "east"}
    write_labels(ids, [("elsewhere",)], ("id",))
    assert main(arguments) == 1 and "closed.csv: none of its ids" in capsys.readouterr().err
    assert main(["suggest", table, "--exclude", "region=west", "--out", str(out)]) == 1
    assert "no row has region=west" in capsys.readouterr().err


def test_a_validation_sample_is_random_with_known_probabilities(pool, tmp_path):
    table, truth = pool
    out = tmp_path / "validation.csv"
    assert main(["suggest", table, "--validation", "30", "--out", str(out)]) == 0
    rows = read_rows(out)
    assert {row["sample"] for row in rows} == {"validation"} and len({row["id"] for row in rows}) == 30
    # The inverse probabilities add up to the rows that could be drawn, in every stratum.
    for name in ("north", "south", "east"):
        own = [1 / float(row["inclusion_probability"]) for row in rows if row["stratum"] == name == row["region"]]
        assert len(own) == 10 and sum(own) == pytest.approx(60)
    drawn = []
    for seed in ("0", "0", "1"):
        assert main(["suggest", table, "--validation", "30", "--seed", seed, "--out", str(out)]) == 0
        drawn.append([row["id"] for row in read_rows(out)])
    assert drawn[0] == drawn[1] == [row["id"] for row in rows] != drawn[2]


def test_a_validation_sheet_is_neither_chosen_nor_learned_from(pool, tmp_path):
    table, truth = pool
    sheet, labels, out = tmp_path / "validation.csv", tmp_path / "labels.csv", tmp_path / "next.csv"
    assert main(["suggest", table, "--validation", "60", "--out", str(sheet)]) == 0
    kept = [row["id"] for row in read_rows(sheet)]
    rest = [name for name in truth if name not in kept][:40]
    chosen = []
    # Labels of the validation sample change nothing, whether they are in the labels or not.
    for names in (rest, [*rest, *kept]):
        write_labels(labels, [(name, truth[name]) for name in names])
        arguments = ["suggest", table, "--labels", str(labels), "--validation-sheet", str(sheet), "-n", "80"]
        assert main([*arguments, "--out", str(out)]) == 0
        chosen.append([row["id"] for row in read_rows(out)])
    assert chosen[0] == chosen[1] and len(chosen[0]) == 80 and not set(chosen[0]) & set(kept)


def test_validation_by_the_class_that_a_head_predicts(pool, tmp_path, capsys):
    table, truth = pool
    labels = write_labels(tmp_path / "labels.csv", list(truth.items())[:80])
    out = tmp_path / "validation.csv"
    arguments = ["suggest", table, "--validation", "20", "--strata", "class", "--out", str(out)]
    assert main([*arguments, "--labels", labels]) == 0
    rows = read_rows(out)
    assert {row["stratum"] for row in rows} == {"cropland", "other"}
    assert np.mean([truth[row["id"]] == row["stratum"] for row in rows]) > 0.7
    assert sum(1 / float(row["inclusion_probability"]) for row in rows) == pytest.approx(100)
    out.unlink()
    assert main(arguments) == 1 and "labels of two classes" in capsys.readouterr().err
    assert main([*arguments[:3], "2", "--out", str(out)]) == 1 and "too few for 3 strata" in capsys.readouterr().err
    assert main([*arguments[:3], "999", "--out", str(out)]) == 1 and "only 180" in capsys.readouterr().err
    assert main([*arguments, "--budget", "3"]) == 1 and "does not go with it" in capsys.readouterr().err


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.floats(0, 1))
def test_allocation_adds_up_and_fits_the_strata(size, share):
    size = np.array(size)
    count = len(size) + int(share * (size.sum() - len(size)))
    quota = allocate(size, count)
    assert quota.sum() == count and np.all(quota >= 1) and np.all(quota <= size)
    if count >= np.minimum(size, 2).sum():
        assert np.all(quota >= np.minimum(size, 2))


def test_a_share_is_drawn_by_chance_and_the_state_remembers_it(pool, tmp_path, capsys):
    out, state = tmp_path / "next.csv", tmp_path / "campaign.state"
    for arguments in (["--explore", "0.5"], []):
        assert main(["suggest", pool[0], "-n", "10", "--out", str(out), "--state", str(state), *arguments]) == 0
        assert sum(row["reason"].startswith("drawn by chance") for row in read_rows(out)) == 5
    with pytest.raises(SystemExit) as stop:
        main(["suggest", pool[0], "--explore", "2", "--out", str(out)])
    assert stop.value.code == 2 and "'2' is not a number from 0 to 1" in capsys.readouterr().err


def test_prices_and_ways_shape_a_batch(placed, tmp_path, capsys):
    out = tmp_path / "next.csv"
    spread = {}
    for price in ("0", "5"):
        assert main(["suggest", placed, "-n", "12", "--per-km", price, "--out", str(out)]) == 0
        spread[price] = len({row["region"] for row in read_rows(out)})
    assert spread == {"0": 3, "5": 1}
    assert main(["suggest", placed, "-n", "40", "--cost", "price", "--budget", "20", "--out", str(out)]) == 0
    rows = read_rows(out)
    assert sum(float(row["cost"]) for row in rows) <= 20 and len(rows) >= 10
    assert main(["suggest", placed, "--cost", "fee", "--out", str(out)]) == 1
    assert "no column 'fee'" in capsys.readouterr().err
    assert main(["suggest", placed, "--cost", "region", "--out", str(out)]) == 1
    assert "must hold numbers" in capsys.readouterr().err
    assert main(["suggest", placed, "--budget", "0.5", "--out", str(out)]) == 1
    assert "pays for none" in capsys.readouterr().err
    assert main(["suggest", placed, "--budget", "5", "--strategy", "random", "--out", str(out)]) == 1
    assert "only the bandit counts prices" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["suggest", placed, "--per-km", "-1", "--out", str(out)])


def test_a_picture_of_what_to_label(sen12ms_tree, tmp_path, capsys):
    table, out, picture = tmp_path / "patches.parquet", tmp_path / "next.csv", tmp_path / "next.png"
    assert main(["embed", str(sen12ms_tree), str(table), "--quiet"]) == 0
    arguments = ["suggest", str(table), "-n", "3", "--out", str(out), "--picture", str(picture)]
    assert main(arguments) == 1 and "--picture needs --images" in capsys.readouterr().err
    assert main([*arguments, "--images", str(sen12ms_tree)]) == 0
    with Image.open(picture) as sheet:
        assert sheet.width == 8 + 3 * 184 and np.asarray(sheet).std() > 10


def test_fit_and_evaluate(pool, tmp_path, capsys):
    table, truth = pool
    labels = write_labels(tmp_path / "labels.csv", truth.items())
    assert main(["fit", table, "--labels", labels, str(tmp_path / "head")]) == 0
    assert "head of 2 classes" in capsys.readouterr().out
    head, vectors = LogisticHead.load(tmp_path / "head"), read_table(table).vectors
    assert (head.predict(vectors) == np.array(list(truth.values()))).mean() > 0.75
    report = tmp_path / "report"
    arguments = ["evaluate", table, "--label-column", "label", "--out", str(report), "--seeds", "1", "--quiet"]
    assert main(arguments) == 0
    figures = json.loads((report / "figures.json").read_text())
    assert {row["region"] for row in figures["transfer"]["regions"]} == {"north", "south", "east"}
    assert (report / "report.html").stat().st_size > 10_000 and (report / "regions.csv").is_file()
    shown, mean = capsys.readouterr().out, figures["transfer"]["spread"]["auc"]
    assert f"mean over regions                  auc {percent(mean)} of 3" in shown and "region left out" in shown


def test_regions_of_a_few_rows_are_told(pool, tmp_path, caplog, answer):
    table, truth = pool
    names = [name for k, name in enumerate(truth) if k % 3 == 0 or k < 9]
    labels = write_labels(tmp_path / "labels.csv", [(name, truth[name]) for name in names])
    found = answer("evaluate", table, "--labels", labels, "--out", tmp_path / "report", "--seeds", 0, "--quiet")
    assert found["small_regions"] == {"south": 3, "east": 3}
    assert "too few rows to test in east (3), south (3): their figures mean little with fewer than 30" in caplog.text


def test_a_report_lies_in_a_folder_of_its_own(pool, tmp_path, capsys):
    arguments = ["evaluate", pool[0], "--label-column", "label", "--seeds", "0", "--quiet", "--out"]
    foreign, own = tmp_path / "imagery", tmp_path / "report"
    foreign.mkdir()
    (foreign / "s2.tif").write_bytes(b"x")
    assert main([*arguments, str(foreign)]) == 1
    assert "holds other files than an earlier report, such as s2.tif; give the name" in capsys.readouterr().err
    assert [path.name for path in foreign.iterdir()] == ["s2.tif"]
    assert main([*arguments, str(foreign / "s2.tif")]) == 1 and "is a file" in capsys.readouterr().err
    own.mkdir()
    for name in ("report.html", "figures.json", "regions.csv", ".DS_Store"):
        (own / name).touch()
    assert main([*arguments, str(own), "--title", "New"]) == 0, "an earlier report may be replaced"
    assert "<h1>New</h1>" in (own / "report.html").read_text()


def test_options_of_heads_through_the_command_line(pool, tmp_path, capsys):
    table, truth = pool
    names = list(truth)
    labels = write_labels(tmp_path / "labels.csv", [(name, truth[name]) for name in names[:120]])
    sets = write_labels(tmp_path / "sets.csv", [(name, truth[name]) for name in names[100:]])
    options = ["--head", "knn", "--standardise-by", "region", "--conformal", sets, "--class-weight", "balanced"]
    assert main(["fit", table, "--labels", labels, str(tmp_path / "head"), *options]) == 0
    assert "knn head of 2 classes" in capsys.readouterr().out
    head, read = load_head(tmp_path / "head"), read_table(table)
    # What calibrates the sets is not in training.
    assert head.n_labels_.sum() == 100 and len(head.conformal_.scores_) == 80
    regions = read.metadata["region"].to_pylist()
    held = head.predict_set(read.vectors, regions, confidence=0.8)
    place = np.searchsorted(head.classes_, list(truth.values()))
    assert 0.65 < held[np.arange(180), place].mean() < 0.95
    assert main(["map", str(tmp_path), str(tmp_path / "m.tif"), "--head", str(tmp_path / "head")]) == 1
    assert "give --region, one of east, north, south" in capsys.readouterr().err


def test_picked_labels_are_no_test(pool, tmp_path, capsys):
    table, truth = pool
    rows = [(name, label, "picked") for name, label in truth.items()]
    labels = write_labels(tmp_path / "labels.csv", rows, ("id", "label", "sample"))
    assert main(["evaluate", table, "--labels", labels, "--out", str(tmp_path / "report"), "--quiet"]) == 1
    assert "all 180 labels were picked by a strategy" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_column_that_is_named_must_be_there(pool, tmp_path, capsys):
    options = ["--label-column", "label"]
    for argv in (["fit", pool[0], *options, str(tmp_path / "x"), "--block", "nothing"],
                 ["suggest", pool[0], "--out", str(tmp_path / "x"), "--region", "nothing"],
                 ["evaluate", pool[0], *options, "--out", str(tmp_path / "x"), "--region", "nothing"]):  # fmt: skip
        assert main(argv) == 1 and "no column 'nothing'; found region, label, block" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_column_without_classes_is_refused(pool, tmp_path, capsys):
    assert main(["evaluate", pool[0], "--label-column", "id", "--out", str(tmp_path / "x"), "--block", "id"]) == 1
    assert "each of the 180 classes has a single row; are these labels?" in capsys.readouterr().err


BAD_LABELS = {
    "unknown ids": ([("x1", "a"), ("x2", "b")], "none of the 2 labelled ids"),
    "conflict": ([("p1", "a"), ("p1", "b")], "'p1' is labelled 'a' and 'b'"),
    "one class": ([("p1", "a"), ("p2", "a")], "one class"),
    "no rows": ([], "no rows below the header"),
    "no label": ([("p1", ""), ("p2", "")], "no row of the table has a label"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_label_files_are_one_clear_line(pool, tmp_path, capsys, name):
    rows, text = BAD_LABELS[name]
    labels = write_labels(tmp_path / "labels.csv", rows)
    assert main(["fit", pool[0], "--labels", labels, str(tmp_path / "head")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("croplem fit: ") and text in lines[-1]
    assert not (tmp_path / "head").exists()


def test_some_unknown_ids_are_told_and_the_rest_is_used(pool, tmp_path, caplog):
    table, truth = pool
    labels = write_labels(tmp_path / "labels.csv", [*truth.items(), ("elsewhere", "cropland")])
    assert main(["fit", table, "--labels", labels, str(tmp_path / "head")]) == 0
    assert "1 of 181 labelled ids are not in the table" in caplog.text


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_filters_and_columns_that_do_not_exist(pool, tmp_path, capsys, verb):
    out = ["--out", str(tmp_path / "x")] if verb == "evaluate" else [str(tmp_path / "x")]
    assert main([verb, pool[0], "--label-column", "crop", *out]) == 1
    assert "no column 'crop'" in capsys.readouterr().err
    assert main([verb, pool[0], "--label-column", "label", "--where", "region=west", *out]) == 1
    assert "no row has region=west" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([verb, pool[0], *out])
    assert stop.value.code == 2 and "--labels" in capsys.readouterr().err


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_sample_embed_fit_map(tmp_path, capsys, monkeypatch):
    sample, table = tmp_path / "sample", tmp_path / "patches.parquet"
    assert main(["data", "sample", str(sample), "--scenes", "2", "--patches", "16", "--size", "64"]) == 0
    assert main(["embed", str(sample), str(table), "--quiet"]) == 0
    labels = str(sample / "labels.csv")
    assert main(["fit", str(table), "--labels", labels, str(tmp_path / "head")]) == 0
    scene = generate_scene(tmp_path / "scene", "iran", size=128)
    arguments = ["map", str(scene), str(tmp_path / "map.tif"), "--head", str(tmp_path / "head"), "--quiet"]
    assert main(arguments) == 0
    found, grid = read_geotiff(tmp_path / "map.tif")
    assert found.shape == (3, 128, 128) and set(np.unique(found[0])) <= {0, 1}
    assert grid.transform == read_geotiff(scene / "s1.tif")[1].transform
    dense = ["map", str(scene), str(tmp_path / "dense.tif"), "--embeddings", "--quiet"]
    assert main([*dense, "--bands", "3", "--patch-size", "16", "--sensors", "s2"]) == 0
    said = capsys.readouterr().out
    assert "embeddings of 8 x 8 tokens, 3 bands" in said and "dense.basis.safetensors" in said
    assert read_geotiff(tmp_path / "dense.tif")[1].gsd == 160
    for extra, text in ((("--stride", "4"), "--stride cannot go with --emb"), (("--patch-size", "17"), "1 to 16")):
        assert main([*dense, *extra]) == 1 and text in capsys.readouterr().err
    assert main([*arguments, "--bands", "3"]) == 1 and "--bands cannot go with --head" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(dense[:3])
    assert stop.value.code == 2 and "--head --embeddings is required" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("croplem_hf.mapping.classes.predict_window", interrupt)
        assert main([*arguments[:2], str(tmp_path / "late.tif"), *arguments[3:]]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert not (tmp_path / "late.tif").exists()
    (tmp_path / "photo.tif").write_bytes((scene / "s1.tif").read_bytes())
    assert main([*arguments[:2], str(tmp_path / "photo.tif"), *arguments[3:]]) == 1
    assert "photo.tif: exists and is no map of this library" in capsys.readouterr().err
    assert main([*arguments[:2], labels, *arguments[3:]]) == 1
    assert "labels.csv: would become a TIF file; give it a name that ends in .tif" in capsys.readouterr().err
    assert main([*arguments, "--region", "iran"]) == 1
    assert "does not centre every region on itself; leave --region out" in capsys.readouterr().err
    assert main(arguments) == 0, "a map may be made anew"
    before = (scene / "s2.tif").read_bytes()
    capsys.readouterr()
    assert main(["map", str(scene), str(scene / "s2.tif"), "--head", str(tmp_path / "head"), "--quiet"]) == 1
    assert "is imagery of the scene" in capsys.readouterr().err and (scene / "s2.tif").read_bytes() == before
    assert main(["data", "sample", str(sample)]) == 1 and "is not empty" in capsys.readouterr().err
    assert read_table(table).metadata["s2_level"].to_pylist().count("L1C") == 31
    assert main(["map", str(tmp_path / "nowhere"), str(tmp_path / "m.tif"), "--head", str(tmp_path / "head")]) == 1
    assert main(["map", str(scene), str(tmp_path / "m.tif"), "--head", str(tmp_path / "nothing")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 2 and not (tmp_path / "m.tif").exists()


def test_the_sheets_of_several_rounds_are_taken_together(pool, tmp_path, capsys):
    table, truth = pool
    items = list(truth.items())
    first = write_labels(tmp_path / "first.csv", items[:30])
    second = write_labels(tmp_path / "second.csv", items[20:60])
    assert main(["fit", table, "--labels", first, "--labels", second, str(tmp_path / "head")]) == 0
    assert sum(LogisticHead.load(tmp_path / "head").n_labels_) == 60
    other = write_labels(tmp_path / "other.csv", [(items[3][0], "something else")])
    assert main(["fit", table, "--labels", first, "--labels", other, str(tmp_path / "head")]) == 1
    assert f"other.csv: {items[3][0]!r} is 'something else' here" in capsys.readouterr().err
    report = ["--out", str(tmp_path / "report"), "--quiet"]
    assert main(["evaluate", table, "--labels", first, "--labels", second, *report]) == 1
    assert "give one file" in capsys.readouterr().err


def test_a_table_of_labels_is_never_replaced_by_a_picture_or_a_report(pool, tmp_path, capsys):
    table, truth = pool
    labels = write_labels(tmp_path / "labels.csv", truth.items())
    before = (tmp_path / "labels.csv").read_bytes()
    out = ["--out", str(tmp_path / "next.csv"), "--images", str(tmp_path), "--picture", labels]
    assert main(["suggest", table, *out]) == 1 and "give it a name that ends in .png" in capsys.readouterr().err
    assert main(["area", str(tmp_path / "map.tif"), "--labels", labels, "--out", labels]) == 1
    assert "give it a name that ends in .json" in capsys.readouterr().err
    assert (tmp_path / "labels.csv").read_bytes() == before
