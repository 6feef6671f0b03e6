"""The resolver: a folder, the Hub, its cache or the packaged checkpoint, and never another one than was asked for.

`HF_ENDPOINT` is read when huggingface_hub is imported, so that every Hub needs a process of its own: this file is also
the script that such a process runs (`python test_resolver.py NAME`), which prints what it saw as JSON.
"""

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import sha1
from pathlib import Path

import pytest

DEFAULT = "croplem/mae-s1s2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def start(name: str, home: Path, **environment: str) -> subprocess.Popen:
    """Start this file as a script that plays `name`, with nothing in its cache."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, __file__, name], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def result(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return json.loads(out.splitlines()[-1])


# Without a Hub


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory):
    """What three fresh processes see that no Hub answers: offline mode, a closed port, a port that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closing:
        closed = closing.getsockname()[1]
        closing.close()
        environments = {
            "offline": {"HF_HUB_OFFLINE": "1"},
            "closed": {"HF_ENDPOINT": f"http://127.0.0.1:{closed}"},
            "silent": {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        }
        processes = {
            name: start("play_unreachable", tmp_path_factory.mktemp(name), **env) for name, env in environments.items()
        }
        return {name: result(process) for name, process in processes.items()}


REASONS = {
    "offline": "offline mode is set",
    "closed": "no connection to the Hub",
    "silent": "the Hub did not answer within 2 seconds",
}


@pytest.mark.parametrize("how", REASONS)
def test_the_packaged_checkpoint_serves_without_a_network(unreachable, how):
    seen = unreachable[how]
    assert seen["packaged"] == seen["folder"] and seen["seconds"] < 5
    [line] = [line for line in seen["log"] if DEFAULT in line]
    reason = f"{REASONS[how]}, and the cache holds no whole copy"
    assert line == f"checkpoint {DEFAULT}: packaged with the library, {seen['packaged']} ({reason})"


@pytest.mark.parametrize("how", REASONS)
def test_no_packaged_copy_of_what_was_asked_for_in_particular(unreachable, how):
    errors = unreachable[how]["errors"]
    assert set(errors) == {"revision", "token", "stored token", "force_download", "another name"}
    for case, (kind, message) in errors.items():
        expected = REASONS[how].replace("2 seconds", "0.5 seconds")
        if case == "force_download" and how == "offline":
            expected = "force_download needs the network, but offline mode is set"
        elif case == "stored token" and how != "offline":
            expected = "cannot be had from the Hub (Token is required"
        elif case != "another name":
            assert message.endswith("the packaged copy serves only without revision, token and force_download")
        assert kind == "CheckpointError" and expected in message, (case, message)


def test_auto_classes_load_the_packaged_folder_in_a_fresh_process(unreachable):
    assert unreachable["offline"]["auto"] == ["CropLEMImageProcessor", "CropLEMModel", "CropLEMForPreTraining"]


def play_unreachable() -> dict:
    from croplem_hf import packaged_path

    packaged = packaged_path()
    seen = {"packaged": str(packaged), "log": record_log()}
    from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

    if os.environ.get("HF_HUB_OFFLINE"):
        loaded = [auto.from_pretrained(packaged) for auto in (AutoImageProcessor, AutoModel, AutoModelForPreTraining)]
        seen["auto"] = [type(x).__name__ for x in loaded]
    from croplem_hf import CropLEMModel, resolve_checkpoint, resolver

    started = time.perf_counter()
    model = CropLEMModel.from_pretrained(DEFAULT)
    seen["seconds"] = time.perf_counter() - started
    seen["folder"] = model.config._name_or_path or model.name_or_path
    resolver.PATIENT_PROBE_SECONDS = 0.5
    seen["errors"] = {
        "revision": attempt(resolve_checkpoint, DEFAULT, revision="main"),
        "token": attempt(resolve_checkpoint, DEFAULT, token="hf_x"),
        "stored token": attempt(resolve_checkpoint, DEFAULT, token=True),
        "force_download": attempt(resolve_checkpoint, DEFAULT, force_download=True),
        "another name": attempt(resolve_checkpoint, "someone/else"),
    }
    return seen


# With a Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What one process sees of a Hub in its different moods."""
    return result(start("play_hub", tmp_path_factory.mktemp("hub")))


def test_a_missing_repository_falls_back(hub):
    kind, folder = hub["404"]
    assert kind == "folder" and folder == hub["packaged"]
    line = f"checkpoint {DEFAULT}: packaged with the library, {folder} (no such repository on the Hub (404))"
    assert line in hub["log"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("401", "the Hub answers 401, .* log in with `hf auth login` or check the name"),
        ("403", r"the Hub refuses access \(403\)"),
        ("429", r"the Hub fails \(429\)"),
        ("500", r"the Hub fails \(500\)"),
        ("503", r"the Hub fails \(503\)"),
        ("200 without JSON", "cannot be had from the Hub"),
    ],
)
def test_a_refusal_or_failure_does_not_fall_back(hub, status, message):
    kind, text = hub[status]
    assert kind == "CheckpointError"
    with pytest.raises(AssertionError, match=f"^{DEFAULT}: {message}"):
        raise AssertionError(text)


@pytest.mark.parametrize("option", ["revision", "token", "force_download"])
def test_a_missing_repository_does_not_fall_back_where_one_was_asked_for(hub, option):
    kind, text = hub[f"404 {option}"]
    assert kind == "CheckpointError" and text.startswith(f"{DEFAULT}: ") and "404" in text


def test_all_files_come_from_the_hub(hub):
    downloaded = hub["download"]
    assert downloaded["folder"].endswith(f"snapshots/{COMMIT}") and downloaded["folder"] in " ".join(hub["log"])
    assert f"checkpoint {DEFAULT}: Hub, {downloaded['folder']}" in hub["log"]
    assert downloaded["files"] == {name: True for name in downloaded["files"]}
    files = set(downloaded["files"])
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokens_croplem.py"} <= files
    assert "notes.bin" not in files
    assert downloaded["max_deviation"] == [6.5, 6.5] and downloaded["dim"] == 32 and downloaded["equal"]


def test_the_cache_serves_without_the_hub_before_the_packaged_copy_does(hub):
    assert hub["cached"] == hub["cached quietly"] == ["folder", hub["download"]["folder"]]
    assert f"checkpoint {DEFAULT}: cache, {hub['download']['folder']} (offline mode is set)" in hub["log"]


@pytest.mark.parametrize("case", ["cut short", "no config"])
def test_a_bad_download_is_an_error_and_no_reason_to_fall_back(hub, case):
    kind, text = hub[case]
    message = {"cut short": "cannot be had from the Hub", "no config": "the repository on the Hub holds no config"}
    assert kind == "CheckpointError" and text.startswith(f"{DEFAULT}: {message[case]}")


def test_a_download_that_broke_is_no_whole_copy_later(hub):
    assert hub["after cut short"] == ["folder", hub["packaged"]]


def git_hash(data: bytes) -> str:
    """By which the Hub names the content of a small file."""
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """The routes that a download uses; `mood` is a status, or "well", "cut short", "babbling"."""

    mood: str = "404"
    files: dict[str, bytes] = {}
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if self.mood.isdigit():
            return self.answer(b"{}", status=int(self.mood))
        if self.mood == "babbling":
            return self.answer(b"<html>")
        if "/tree/" in path:
            about = [{"path": name, "size": len(d), "oid": git_hash(d)} for name, d in self.files.items()]
            return self.answer(json.dumps([{"type": "file"} | file for file in about]).encode())
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            return self.answer(json.dumps({"id": DEFAULT, "sha": COMMIT, "siblings": siblings}).encode())
        data = self.files[path.rpartition("/")[2]]
        self.answer(data, cut=self.mood == "cut short" and path.endswith(".safetensors"))

    do_HEAD = do_GET

    def answer(self, data: bytes, *, status: int = 200, cut: bool = False):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), "ETag": f'"{git_hash(data)}"', "X-Repo-Commit": COMMIT,
                            "Accept-Ranges": "bytes", "Content-Type": "application/json"}.items():  # fmt: skip
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    def log_message(self, *args):
        pass


def play_hub() -> dict:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    work = Path(os.environ["HF_HOME"])
    from croplem_hf import CropLEMImageProcessor, CropLEMModel, Embedder, packaged_path, resolve_checkpoint

    seen = {"packaged": str(packaged_path()), "log": record_log()}
    seen["404"] = attempt(resolve_checkpoint, DEFAULT)
    for option in ({"revision": "v1"}, {"token": "hf_x"}, {"force_download": True}):
        seen[f"404 {next(iter(option))}"] = attempt(resolve_checkpoint, DEFAULT, **option)
    for Hub.mood in ("401", "403", "429", "500", "503"):
        seen[Hub.mood] = attempt(resolve_checkpoint, DEFAULT)
    Hub.mood = "babbling"
    seen["200 without JSON"] = attempt(resolve_checkpoint, DEFAULT)

    tiny_checkpoint(work / "tiny")
    Hub.files = {path.name: path.read_bytes() for path in (work / "tiny").iterdir()}
    Hub.mood = "cut short"
    sleep, time.sleep = time.sleep, lambda seconds: None  # the stock client rests a second before each new try
    seen["cut short"] = attempt(resolve_checkpoint, DEFAULT, cache_dir=work / "cut")
    time.sleep = sleep
    seen["after cut short"] = attempt(resolve_checkpoint, DEFAULT, cache_dir=work / "cut", local_files_only=True)

    Hub.mood = "well"
    embedder = Embedder.from_pretrained(DEFAULT, device="cpu")
    processor, folder = CropLEMImageProcessor.from_pretrained(DEFAULT), resolve_checkpoint(DEFAULT)
    tensors = CropLEMModel.from_pretrained(work / "tiny").state_dict()
    seen["download"] = {
        "folder": str(folder),
        "files": {path.name: path.read_bytes() == Hub.files[path.name] for path in folder.iterdir()},
        "max_deviation": [embedder.processor.max_deviation, processor.max_deviation],
        "dim": embedder.dim,
        "equal": all(value.equal(tensors[name]) for name, value in embedder.model.state_dict().items()),
    }
    Hub.mood = "500"
    seen["cached"] = attempt(resolve_checkpoint, DEFAULT, local_files_only=True)
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    seen["cached quietly"] = attempt(resolve_checkpoint, DEFAULT)
    constants.HF_HUB_OFFLINE = False
    Hub.mood, Hub.files = "well", {"README.md": b"# nothing here"}
    seen["no config"] = attempt(resolve_checkpoint, DEFAULT, cache_dir=work / "none")
    return seen


def tiny_checkpoint(folder: Path) -> None:
    import torch

    from croplem_hf import CropLEMConfig, CropLEMImageProcessor, CropLEMModel

    torch.manual_seed(0)
    CropLEMModel(CropLEMConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=64)).save_pretrained(folder)
    CropLEMImageProcessor(max_deviation=6.5).save_pretrained(folder)
    (folder / "notes.bin").write_bytes(b"not of a checkpoint")


def record_log() -> list[str]:
    """Messages of the library's log, growing."""
    import logging

    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("croplem_hf").addHandler(handler)
    logging.getLogger("croplem_hf").setLevel(logging.INFO)
    return lines


def attempt(function, *args, **kwargs) -> list[str]:
    """["folder", where] or [kind of the error, its message]."""
    from croplem_hf import CropLEMError

    try:
        return ["folder", str(function(*args, **kwargs))]
    except CropLEMError as error:
        return [type(error).__name__, str(error)]


# Folders and names


def test_local_folders(tmp_path, monkeypatch):
    from croplem_hf import CheckpointError, packaged_path, resolve_checkpoint

    (tmp_path / "croplem").mkdir()
    copy = shutil.copytree(packaged_path(), tmp_path / "croplem" / "mae-s1s2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (copy, str(copy), "./croplem/mae-s1s2", DEFAULT, "~/croplem/mae-s1s2"):
        assert resolve_checkpoint(name).resolve() == copy
    with pytest.raises(CheckpointError, match="croplem: no config.json in this folder"):
        resolve_checkpoint("croplem")
    for name in ("./nothing", "/nothing/here", "~/nothing", "~nobody/x", "a/b/c", "models/", "C:\\models\\x"):
        with pytest.raises(CheckpointError, match="no such folder; give a folder with config.json, or a name such as"):
            resolve_checkpoint(name)
    for name in ("", "a b", "-x/y", "x--y/z..", "x" * 200):
        with pytest.raises(CheckpointError):
            resolve_checkpoint(name, local_files_only=True)


def test_the_library_ships_one_checkpoint():
    from croplem_hf import CheckpointError, packaged_path

    assert (packaged_path() / "model.safetensors").is_file()
    with pytest.raises(CheckpointError, match="the library ships no checkpoint 'croplem/other'; there is"):
        packaged_path("croplem/other")


if __name__ == "__main__":
    with contextlib.chdir(tempfile.gettempdir()):
        print(json.dumps(globals()[sys.argv[1]]()))
