"""Pushes and pulls through the real clients, against a Hub on this machine.

`HF_ENDPOINT` is read when huggingface_hub is imported, so clients have processes of their own: this file is also the
script that they run (`python test_hub.py NAME HOME THINGS`). Each starts its Hub first, and prints what it saw as JSON.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import croplem_hf

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
from loopback import LoopbackHub

TOKENS = ("HF_", "HUGGING", "TRANSFORMERS_")


def run(name: str, home: Path, things: dict[str, Path]) -> dict:
    """What the client `name` saw."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(TOKENS)}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(croplem_hf.__file__).parents[1])}
    given = json.dumps({kind: str(path) for kind, path in things.items()})
    command = [sys.executable, "-W", "error::UserWarning", __file__, name, str(home), given]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def attempt(function, *args, **kwargs) -> list[str]:
    """["done", what] or [kind of the error, its message]."""
    from croplem_hf import CropLEMError

    try:
        return ["done", str(function(*args, **kwargs))]
    except CropLEMError as error:
        return [type(error).__name__, str(error)]


# Push and pull


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory, things):
    return run("play_round_trip", tmp_path_factory.mktemp("round_trip"), things)


def play_round_trip(hub: LoopbackHub, home: Path, things: dict) -> dict:
    import numpy as np

    from croplem_hf import CropLEMModel, Embedder, EmbeddingIndex, LogisticHead, push, read_table
    from croplem_hf.hub import fetch
    from croplem_hf.resolver import hook

    seen = {"url": {}, "files": {}, "commits": {}, "private": {}}
    for kind, path in things.items():
        seen["url"][kind] = push(
            kind, path, f"croplem/{kind}", licence=None if kind == "dataset" else "cc-by-4.0",
            evaluations=[f"north-south={things['report']}"] if kind == "model" else (),
        ).replace(str(hub.port), "PORT")  # fmt: skip
    for (kind, name), repo in hub.repos.items():
        name = name.rpartition("/")[2]
        seen["files"][name] = {"type": kind} | dict.fromkeys(hub.files(kind, f"croplem/{name}"))
        seen["commits"][name], seen["private"][name] = len(repo.commits) - 1, repo.private
    seen["card"] = hub.files("model", "croplem/model")["README.md"].decode()
    seen["sdk"] = hub.repos["space", "croplem/report"].sdk

    model = CropLEMModel.from_pretrained("croplem/model")
    local = CropLEMModel.from_pretrained(things["model"])
    seen["model"] = all(value.equal(model.state_dict()[name]) for name, value in local.state_dict().items())
    embedder = Embedder.from_pretrained("croplem/model", device="cpu")
    seen["deviation"] = embedder.processor.max_deviation
    index, whole = EmbeddingIndex.load("croplem/index"), EmbeddingIndex.load(things["index"])
    seen["index"] = [found.query(ids=["p3"], k=3).ids for found in (index, whole)]
    table = read_table(fetch("croplem/embeddings", "embeddings"))
    seen["embeddings"] = bool(np.array_equal(table.vectors, read_table(things["embeddings"]).vectors))
    index.check_settings(table.info)
    probabilities = [LogisticHead.load(f).predict_proba(table.vectors) for f in ("croplem/head", things["head"])]
    seen["head"] = bool(np.array_equal(*probabilities))
    seen["report"] = sorted(path.name for path in fetch("croplem/report", "report").iterdir())

    # Once more, the same: no large file is sent. Then another index, which has no removed rows.
    hub.requests.clear()
    push("index", things["index"], "croplem/index", licence="cc-by-4.0")
    seen["sent again"] = [path for method, path, _ in hub.requests if method == "PUT"]
    changed = EmbeddingIndex.load(things["index"])
    changed.remove(["p1"])
    changed.save(home / "changed")
    push("index", home / "changed", "croplem/index", licence="cc-by-4.0")
    seen["changed"] = sorted(hub.files("dataset", "croplem/index"))
    hub.repos["dataset", "croplem/index"].commits[-1][1]["mine.txt"] = b"of the owner"
    push("index", things["index"], "croplem/index", licence="cc-by-4.0")
    seen["back"] = sorted(hub.files("dataset", "croplem/index"))

    # A revision, which a later commit does not touch.
    first = hub.repos["model", "croplem/model"].commits[-1][0]
    hub.create("model", "croplem/model", {"config.json": b"{}"})
    seen["revision"] = [Path(hook("croplem/model", {"revision": first})[0]).name == first]
    seen["unknown revision"] = attempt(EmbeddingIndex.load, "croplem/index", revision="0" * 40)
    return seen


def test_each_push_is_one_commit_to_a_private_repository(round_trip):
    assert set(round_trip["commits"]) == {"model", "dataset", "embeddings", "index", "head", "report"}
    assert set(round_trip["commits"].values()) == {1} and all(round_trip["private"].values())
    assert round_trip["url"]["index"].startswith("http://127.0.0.1:PORT/datasets/croplem/index/commit/")


def test_only_the_listed_files_go(round_trip, things):
    files = {kind: set(found) - {"type"} for kind, found in round_trip["files"].items()}
    code = {f"{name}_croplem.py" for name in ("configuration", "modeling", "image_processing", "tokens")}
    assert files["model"] == code | {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert files["head"] == {"head.json", "head.safetensors", "README.md"}
    assert files["index"] == {"index.json", "metadata.parquet", "vectors.npy", "README.md"}
    assert files["embeddings"] == {"embeddings.parquet", "README.md"}
    assert files["report"] == {"report.html", "figures.json", "regions.csv", "README.md"}
    shards = {f"data/{path.name}" for path in (things["dataset"] / "data").iterdir()}
    assert files["dataset"] == shards | {"README.md", "manifest.json", "index.parquet", "skipped.csv"}
    types = {kind: found["type"] for kind, found in round_trip["files"].items()}
    assert types == {"model": "model", "head": "model", "index": "dataset", "embeddings": "dataset",
                     "dataset": "dataset", "report": "space"}  # fmt: skip
    assert round_trip["sdk"] == "static"


def test_what_comes_back_is_what_went(round_trip):
    assert round_trip["model"] and round_trip["embeddings"] and round_trip["head"]
    assert round_trip["deviation"] == 6.5
    assert round_trip["index"][0] == round_trip["index"][1]
    assert round_trip["report"] == ["figures.json", "regions.csv", "report.html"]


def test_large_files_are_sent_once_and_files_of_the_kind_are_replaced(round_trip):
    assert round_trip["sent again"] == []
    assert "removed.npy" in round_trip["changed"] and "removed.npy" not in round_trip["back"]
    assert "mine.txt" in round_trip["back"]


def test_revisions(round_trip):
    assert round_trip["revision"] == [True]
    kind, text = round_trip["unknown revision"]
    assert kind == "CheckpointError" and "no such file or revision (404)" in text


# What goes wrong with pushes


@pytest.fixture(scope="module")
def refusals(tmp_path_factory, things):
    return run("play_refusals", tmp_path_factory.mktemp("refusals"), things)


def play_refusals(hub: LoopbackHub, home: Path, things: dict) -> dict:
    from huggingface_hub import constants

    from croplem_hf import push

    time.sleep = lambda seconds: None  # the stock client rests before each new try
    give = ("head", things["head"])
    seen = {}
    seen["stranger"] = attempt(push, *give, "croplem/a", licence="mit", token="stranger")
    seen["other owner"] = attempt(push, *give, "someone/a", licence="mit")
    for status, path in ((401, "create"), (404, "preupload"), (409, "commit"), (412, "commit"), (429, "commit"),
                         (500, "commit"), (503, "lfs/objects/batch")):  # fmt: skip
        hub.fault("POST", path, status, times=1 if status not in (429, 500, 503) else 9)
        seen[str(status)] = attempt(push, *give, f"croplem/r{status}", licence="mit")
        hub._faults.clear()
        if status != 401:
            seen[f"{status} files"] = sorted(hub.files("model", f"croplem/r{status}"))
    # Someone commits between our look and our commit.
    hub.create("model", "croplem/raced", {"README.md": b"first"})
    prepare_commit = hub.repos["model", "croplem/raced"]
    hub.before = lambda path: path.endswith("preupload/main") and prepare_commit.commit({"README.md": b"second"})
    seen["raced"] = attempt(push, *give, "croplem/raced", licence="mit")
    hub.before = None
    seen["raced files"] = hub.files("model", "croplem/raced")["README.md"].decode()

    hub.fault("PUT", "/lfs/", 503, times=2)
    hub.fault("POST", "preupload", 500, times=2)
    seen["retried"] = attempt(push, *give, "croplem/retried", licence="mit")
    hub.create("model", "croplem/open", {"README.md": b""}, private=False)
    seen["open"] = attempt(push, *give, "croplem/open", licence="mit")
    seen["open files"] = sorted(hub.files("model", "croplem/open"))
    seen["openly"] = attempt(push, *give, "croplem/open", licence="mit", public=True)
    seen["made open"] = [attempt(push, *give, "croplem/new", licence="mit", public=True)[0],
                         hub.repos["model", "croplem/new"].private]  # fmt: skip
    constants.HF_HUB_OFFLINE = True
    seen["offline"] = attempt(push, *give, "croplem/a", licence="mit")
    constants.HF_HUB_OFFLINE = False
    hub.close()
    seen["no network"] = attempt(push, *give, "croplem/a", licence="mit")
    return seen


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("stranger", r"you may not write there \(403: .*namespace .*\); use a token that may"),
        ("other owner", r"you may not write there \(403"),
        ("401", r"the Hub does not know who you are \(401\); `hf auth login` with a token that may write"),
        ("404", r"no such repository for you \(404\); check the owner"),
        ("409", r"another write is going on, or the name is taken by something else \(409\); try again"),
        ("412", r"someone else wrote to it meanwhile \(412\); look at what is there and push again"),
        ("raced", r"someone else wrote to it meanwhile \(412\)"),
        ("429", r"the Hub asks for patience \(429\)"),
        ("500", r"the Hub fails \(500\); the same push goes on where it stopped"),
        ("503", r"the Hub fails \(503\)"),
        ("open", r"is there and public; push with --public"),
        ("offline", r"offline mode is set \(HF_HUB_OFFLINE\), and a push needs the Hub"),
        ("no network", r"no connection to the Hub .*; push again when there is"),
    ],
)
def test_refusals_say_what_to_do_in_one_line(refusals, case, message):
    kind, text = refusals[case]
    assert kind == "HubError" and "\n" not in text
    with pytest.raises(AssertionError, match=f"^[a-z]+/[a-z0-9]+: {message}"):
        raise AssertionError(text)


def test_a_push_that_failed_left_nothing(refusals):
    assert [refusals[f"{status} files"] for status in (404, 409, 412, 429, 500, 503)] == [[]] * 6
    assert refusals["raced files"] == "second" and refusals["open files"] == ["README.md"]


def test_failures_of_a_moment_are_tried_again(refusals):
    assert refusals["retried"][0] == "done"


def test_public_only_where_that_was_said(refusals):
    assert refusals["openly"][0] == "done" and refusals["made open"] == ["done", False]


# What goes wrong with pulls


@pytest.fixture(scope="module")
def pulls(tmp_path_factory, things):
    return run("play_pulls", tmp_path_factory.mktemp("pulls"), things)


def play_pulls(hub: LoopbackHub, home: Path, things: dict) -> dict:
    from huggingface_hub import constants

    from croplem_hf import CropLEMModel, EmbeddingIndex, LogisticHead, push, resolve_checkpoint

    time.sleep = lambda seconds: None
    for kind in ("model", "index", "head"):
        push(kind, things[kind], f"croplem/{kind}", licence="mit")
    seen = {}

    # The connection breaks, and the client asks for the rest alone.
    constants.DOWNLOAD_CHUNK_SIZE = 2**14
    half = len(hub.files("model", "croplem/model")["model.safetensors"]) // 2**15 * 2**14
    hub.cut("model.safetensors", half)
    hub.requests.clear()
    seen["resumed"] = attempt(resolve_checkpoint, "croplem/model")
    seen["ranges"] = [asked for method, path, asked in hub.requests if method == "GET" and "model.safe" in path]
    seen["whole"] = (Path(seen["resumed"][1]) / "model.safetensors").read_bytes() == hub.files(
        "model", "croplem/model"
    )["model.safetensors"]
    seen["half"] = half

    # One byte is another, and the size the same.
    for name, kind, load in (
        ("vectors.npy", "index", EmbeddingIndex.load),
        ("head.json", "head", LogisticHead.load),
        ("model.safetensors", "model", CropLEMModel.from_pretrained),
    ):
        shutil.rmtree(home / "cache")
        hub.spoil(name)
        seen[f"spoilt {kind}"] = attempt(load, f"croplem/{kind}")
        hub._spoilt.clear()
        seen[f"mended {kind}"] = attempt(load, f"croplem/{kind}")[0]
    assert attempt(EmbeddingIndex.load, "croplem/index")[0] == attempt(LogisticHead.load, "croplem/head")[0] == "done"

    for status in (403, 500, 503):
        hub.fault("GET", "/api/datasets/croplem/index", status, times=99)
        seen[str(status)] = attempt(EmbeddingIndex.load, "croplem/index")
        hub._faults.clear()
    seen["404"] = attempt(EmbeddingIndex.load, "croplem/nothing")
    seen["401"] = attempt(EmbeddingIndex.load, "croplem/nothing", token=False)
    seen["403 file"] = [hub.fault("HEAD", "resolve", 403, times=99), attempt(LogisticHead.load, "croplem/index")][1]
    hub._faults.clear()
    for name, status in (("retried", 429), ("not retried", 503)):
        hub.fault("GET", "/lfs/.*/model.safetensors", status, times=2)
        seen[name] = attempt(CropLEMModel.from_pretrained, "croplem/model", force_download=True)
        hub._faults.clear()

    constants.HF_HUB_OFFLINE = True
    head = attempt(LogisticHead.load, "croplem/head")[0]
    seen["offline, cached"] = attempt(EmbeddingIndex.load, "croplem/other"), head
    constants.HF_HUB_OFFLINE = False
    hub.close()
    seen["no network, cached"] = attempt(EmbeddingIndex.load, "croplem/index")
    seen["no network"] = attempt(EmbeddingIndex.load, "croplem/nothing")
    return seen


def test_an_interrupted_download_goes_on_where_it_was(pulls):
    assert pulls["resumed"][0] == "done" and pulls["whole"]
    assert pulls["ranges"] == [None, f"bytes={pulls['half']}-"]


@pytest.mark.parametrize(
    ("kind", "file"), [("index", "vectors.npy"), ("head", "head.json"), ("model", "model.safetensors")]
)
def test_a_file_that_came_damaged_is_refused(pulls, kind, file):
    name, text = pulls[f"spoilt {kind}"]
    assert name == "CheckpointError" and f"{file}: came damaged from the Hub" in text
    assert pulls[f"mended {kind}"] == "done"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("403", r"no such path here, and the Hub refuses access \(403\)"),
        ("500", r"no such path here, and the Hub fails \(500\)"),
        ("503", r"no such path here, and the Hub fails \(503\)"),
        ("404", r"no such path here, and no such dataset repository on the Hub \(404\)"),
        ("401", r"no such path here, and the Hub answers 401"),
        ("no network", r"no such path here, no connection to the Hub, and the cache does not hold it"),
    ],
)
def test_pulls_that_fail_say_why(pulls, case, message):
    kind, text = pulls[case]
    assert kind == "CheckpointError"
    with pytest.raises(AssertionError, match=rf"^croplem/\w+: {message}"):
        raise AssertionError(text)


def test_the_cache_serves_without_a_network(pulls):
    assert pulls["no network, cached"][0] == "done", pulls["no network, cached"]
    other, head = pulls["offline, cached"]
    assert head == "done" and "offline mode is set, and the cache does not hold it" in other[1]


def test_a_download_that_fails_for_a_moment(pulls):
    assert pulls["retried"][0] == "done", pulls["retried"]
    # The client tries again where the Hub asks for patience, and not where it fails.
    kind, text = pulls["not retried"]
    assert kind == "CheckpointError" and text == "croplem/model: the Hub fails (503); try again later"


if __name__ == "__main__":
    _, play, home, given = sys.argv
    with LoopbackHub() as hub, contextlib.chdir(home):
        os.environ |= hub.environment(Path(home) / "cache")
        logging.disable(logging.WARNING)
        print(json.dumps(globals()[play](hub, Path(home), {k: Path(v) for k, v in json.loads(given).items()})))
