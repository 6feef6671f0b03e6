"""What a push would hold: files, licences, and a card whose figures are those of the evaluation."""

import json
import shutil

import numpy as np
import pytest
import yaml
from things import write_table

from croplem_hf import CheckpointError, DataError, EmbeddingIndex, read_table
from croplem_hf.cli import main
from croplem_hf.heads import HEADS
from croplem_hf.hub import prepare


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_of_a_model_has_the_figures_of_the_evaluation(things):
    card = prepare("model", things["model"], "me/m", licence="MIT", evaluations=[str(things["report"])]).card
    head, figures = head_of(card), json.loads((things["report"] / "figures.json").read_text())
    assert head["license"] == "mit" and head["pipeline_tag"] == "image-feature-extraction"
    [model] = head["model-index"]
    metrics = {(r["dataset"]["split"], m["name"]): m["value"] for r in model["results"] for m in r["metrics"]}
    assert model["name"] == "m" and len(metrics) == 12
    for part, how in (("transfer", "region left out"), ("within", "labels of all regions")):
        for key, which in (("mean", "mean of regions"), ("worst", "worst region")):
            assert metrics[how, f"AUC, {which}"] == round(figures[part]["spread"]["auc"][key], 4)
    rows = [line for line in card.splitlines() if line.startswith(("| north |", "| south |"))]
    for line, row in zip(rows, figures["transfer"]["regions"] + figures["within"]["regions"], strict=True):
        assert line.startswith(f"| {row['region']} | {row['n']} | {100 * row['auc']['value']:.1f}")
    assert f"calibration error {figures['transfer']['calibration']['ece']:.3f}" in card
    assert "Its owner has not said what it was trained on" in card


def test_a_card_that_is_there_stays_and_takes_new_figures(things, tmp_path):
    folder = shutil.copytree(things["model"], tmp_path / "m")
    own = "---\nlicense: apache-2.0\ntags:\n- mine\n---\n\n# Mine\n\nWritten by hand.\n"
    (folder / "README.md").write_text(own)
    card = prepare("model", folder, "me/m").card
    assert "Written by hand." in card and head_of(card)["license"] == "apache-2.0" and head_of(card)["tags"] == ["mine"]
    assert "model-index" not in head_of(card)
    once = prepare("model", folder, "me/m", evaluations=[f"first={things['report']}"]).card
    (folder / "README.md").write_text(once)
    twice = prepare("model", folder, "me/m", evaluations=[f"second={things['report']}"]).card
    assert "### first" in once and "### first" not in twice and twice.count("## Evaluation") == 1
    names = {result["dataset"]["name"] for result in head_of(twice)["model-index"][0]["results"]}
    assert names == {"second"} and "Written by hand." in twice
    with pytest.raises(DataError, match=r"has a README.md already; put the notes there"):
        prepare("model", folder, "me/m", notes="more")


def test_figures_of_another_model_are_refused(things, tmp_path):
    report = shutil.copytree(things["report"], tmp_path / "report")
    figures = json.loads((report / "figures.json").read_text())
    figures["data"]["embeddings"]["weights_hash"] = "0" * 64
    (report / "figures.json").write_text(json.dumps(figures))
    with pytest.raises(CheckpointError, match="these figures are of another model"):
        prepare("model", things["model"], "me/m", licence="mit", evaluations=[str(report)])
    (report / "figures.json").write_text("{}")
    with pytest.raises(DataError, match="not the figures that `croplem evaluate` writes"):
        prepare("model", things["model"], "me/m", licence="mit", evaluations=[str(report)])
    with pytest.raises(DataError, match="no such file; `croplem evaluate` writes it"):
        prepare("model", things["model"], "me/m", licence="mit", evaluations=[str(tmp_path / "none")])
    with pytest.raises(DataError, match="two evaluations are named 'report'"):
        prepare("model", things["model"], "me/m", licence="mit", evaluations=[str(things["report"])] * 2)


@pytest.mark.parametrize("kind", ["dataset", "embeddings", "index", "head", "report"])
def test_every_card_names_what_it_is_of(things, kind):
    card = prepare(kind, things[kind], "me/x", licence="cc-by-4.0", notes="From **here**.").card
    head = head_of(card)
    assert head["license"] == "cc-by-4.0" and "From **here**." in card
    assert "{{ " not in card and "{%" not in card and "path/or/hub/name" not in card and "\n\n\n" not in card
    expected = {
        "dataset": 'load_dataset("me/x"', "embeddings": "80 embeddings of 32 numbers",
        "index": 'EmbeddingIndex.load("me/x")', "head": "| 0 | 40 |", "report": "report.html",
    }  # fmt: skip
    assert expected[kind] in card
    assert kind != "head" or "left as they were: held-out blocks called for no temperature." in card
    # Folders of this machine are nobody's business.
    assert str(things["model"].parent) not in card


def test_shards_keep_the_card_that_their_owner_wrote(things, tmp_path):
    folder = shutil.copytree(things["dataset"], tmp_path / "shards")
    own = (folder / "README.md").read_text().replace("license: cc-by-4.0", "license: mit") + "\nTaken by me.\n"
    (folder / "README.md").write_text(own)
    manifest = json.loads((folder / "manifest.json").read_text())
    with pytest.raises(DataError, match="its data carry cc-by-4.0, not mit"):
        prepare("dataset", folder, "me/x")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"source": "folder"}))
    card = prepare("dataset", folder, "me/x").card
    assert head_of(card)["license"] == "mit" and "Taken by me." in card and head_of(card)["configs"][0]["default"]


# Licences


def table_with(path, things, licences: list, **info):
    table = read_table(things["embeddings"])
    write_table(path, np.asarray(table.vectors[: len(licences)]), table.info | info, licence=licences)
    return path


def test_data_that_may_not_be_passed_on_are_refused(things, tmp_path):
    path = table_with(tmp_path / "t.parquet", things, ["cc-by-4.0", "Proprietary", None])
    for given in (None, "cc-by-4.0", "other"):
        with pytest.raises(DataError, match=r"holds data marked 'proprietary', which may not be passed on"):
            prepare("embeddings", path, "me/x", licence=given)
    EmbeddingIndex.build(read_table(path)).save(tmp_path / "index")
    with pytest.raises(DataError, match="holds data marked 'proprietary'"):
        prepare("index", tmp_path / "index", "me/x", licence="mit")
    path = table_with(tmp_path / "u.parquet", things, [None], licence="no redistribution")
    with pytest.raises(DataError, match="holds data marked 'no-redistribution'"):
        prepare("embeddings", path, "me/x", licence="mit")
    with pytest.raises(DataError, match="holds data marked 'confidential'"):
        prepare("embeddings", things["embeddings"], "me/x", licence="confidential")


def test_a_licence_that_is_not_known_is_asked_for(things, tmp_path):
    for kind in ("model", "embeddings", "index", "head", "report"):
        with pytest.raises(DataError, match="nothing says under which licence it stands; give --licence"):
            prepare(kind, things[kind], "me/x")
    path = table_with(tmp_path / "t.parquet", things, ["cc-by-4.0", "CC BY 4.0", "unknown"])
    assert head_of(prepare("embeddings", path, "me/x").card)["license"] == "cc-by-4.0"
    with pytest.raises(DataError, match="its data carry cc-by-4.0, not mit"):
        prepare("embeddings", path, "me/x", licence="mit")
    path = table_with(tmp_path / "v.parquet", things, ["cc-by-4.0", "mit"])
    with pytest.raises(DataError, match="its data carry cc-by-4.0, mit; give --licence"):
        prepare("embeddings", path, "me/x")
    assert head_of(prepare("embeddings", path, "me/x", licence="other").card)["license"] == "other"
    path = table_with(tmp_path / "w.parquet", things, [None], source={"kind": "sen12ms"})
    assert head_of(prepare("embeddings", path, "me/x").card)["license"] == "cc-by-4.0"


def test_a_card_says_the_source_that_the_table_knows(things, tmp_path):
    table, path = read_table(things["embeddings"]), tmp_path / "t.parquet"
    vectors = np.asarray(table.vectors[:3])
    unknown = "Its owner has not said where the imagery comes from."
    for info, columns, told in (
        ({"source": {"kind": "sen12ms", "licence": "cc-by-4.0"}}, {}, "The imagery is that of SEN12MS (Schmitt"),
        ({}, {"source": ["worldcereal", "itu", "itu"]}, "what the column `source` names: itu, worldcereal."),
        ({"source": {"kind": "series"}}, {}, unknown),
    ):
        write_table(path, vectors, table.info | info, **columns)
        EmbeddingIndex.build(read_table(path)).save(tmp_path / "index")
        for kind, thing in (("embeddings", path), ("index", tmp_path / "index")):
            card = prepare(kind, thing, "me/x", licence="cc-by-4.0").card
            assert told in card and (unknown in card) == (told == unknown) and "\n\n\n" not in card


def test_a_model_is_pushed_by_its_name_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert main(["push", "model", "croplem/mae-s1s2", "me/m", "--dry-run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert main(["push", "model", "croplem/none", "me/m", "--dry-run"]) == 1
    assert "croplem/none: offline mode is set" in capsys.readouterr().err


# What is no such thing


def test_things_that_are_not_whole_are_refused(things, tmp_path):
    for kind in ("model", "head", "index", "report", "dataset"):
        (tmp_path / kind).mkdir()
        with pytest.raises((DataError, CheckpointError), match=str(tmp_path / kind)):
            prepare(kind, tmp_path / kind, "me/x", licence="mit")
    with pytest.raises(DataError, match="no such file"):
        prepare("embeddings", tmp_path / "none.parquet", "me/x", licence="mit")
    folder = shutil.copytree(things["dataset"], tmp_path / "shards")
    next((folder / "data").iterdir()).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="missing or not of the size in manifest.json"):
        prepare("dataset", folder, "me/x")
    folder = shutil.copytree(things["model"], tmp_path / "m")
    (folder / "tokens_croplem.py").unlink()
    with pytest.raises(CheckpointError, match="tokens_croplem.py is missing"):
        prepare("model", folder, "me/x", licence="mit")
    for repo in ("me", "me/", "a/b/c", "../x", "me/x y"):
        with pytest.raises(DataError, match="is no repository; give owner/name"):
            prepare("head", things["head"], repo, licence="mit")
    with pytest.raises(DataError, match="evaluations go with a model or a head"):
        prepare("index", things["index"], "me/x", licence="mit", evaluations=["r"])


def test_the_command_shows_what_would_go(things, capsys):
    command = ["push", "model", str(things["model"]), "me/m", "--dry-run"]
    assert main([*command, "--licence", "mit"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("model to the model repository me/m, ") and "\n  model.safetensors  3" in out
    assert "\n  stays here: notes.txt\n" in out and "\nlicense: mit\n" in out
    assert main(command) == 1
    assert capsys.readouterr().err.endswith("give --licence, such as cc-by-4.0, or --licence other\n")
    assert main([*command, "--notes", "/no/such/file"]) == 1
    assert "no such file of notes" in capsys.readouterr().err
    weights = str(things["model"] / "model.safetensors")
    assert main([*command, "--notes", weights]) == 1 and "notes are text in UTF-8" in capsys.readouterr().err
    assert main(["push", "model", weights, "me/m", "--dry-run"]) == 1
    assert "is a file; a checkpoint is a folder" in capsys.readouterr().err


def test_heads_of_every_kind_can_be_pushed(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = np.where(X[:, 0] > 0, "crop", "other")
    for kind in HEADS.values():
        head = kind().fit(X, y)
        head.temperature_ = 2.5
        head.save(tmp_path / "head")
        card = prepare("head", tmp_path / "head", "me/x", licence="mit").card
        assert "| crop |" in card and "by a temperature of 2.50 found on held-out blocks." in card


def test_a_card_says_what_the_training_took(things, tmp_path):
    folder = shutil.copytree(things["model"], tmp_path / "m")
    cost = {"steps": 4200, "samples": 537600, "hours": 0.53, "processes": 2, "precision": "bf16", "device": "cpu"}
    (folder / "training.json").write_text(json.dumps(cost))
    push = prepare("model", folder, "me/m", licence="mit")
    assert "537,600 samples in 4,200 steps: 0.53 hours on 2 x cpu\n(mixed precision: bf16)." in push.card
    assert "training.json" in push.files
    (folder / "training.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"training\.json: is not what pretraining writes"):
        prepare("model", folder, "me/m", licence="mit")
