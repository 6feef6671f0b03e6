"""Nothing that is loaded, from disk or from the Hub, runs a pickle that lies in it."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import LoopbackHub
from safetensors import SafetensorError

import croplem_hf
from croplem_hf import (
    CoverageBandit,
    CropLEMError,
    CropLEMImageProcessor,
    CropLEMModel,
    Embedder,
    EmbeddingIndex,
    LogisticHead,
    read_table,
)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sprung(tmp_path):
    """Where a pickle that was run would leave its trace."""
    path = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.is_dir()
    path.rmdir()
    return path


def trap(sprung: Path) -> bytes:
    return pickle.dumps(Trap(sprung))


def torch_trap(sprung: Path) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"croplem.layernorm.weight": Trap(sprung)}, buffer)
    return buffer.getvalue()


def npy_trap(sprung: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(sprung)], object), allow_pickle=True)
    return buffer.getvalue()


def refused(function, *args) -> None:
    """Anything but to run it: our error, or a thing that was loaded from the other files."""
    try:
        function(*args)
    except CropLEMError:
        pass


PICKLES = ("pytorch_model.bin", "model.pt", "model.pkl", "adapter_model.bin", "training_args.bin", "optimizer.pt")


@pytest.mark.parametrize("left", ["with weights", "without weights", "weights are a pickle"])
@pytest.mark.parametrize("load", [Embedder.from_pretrained, CropLEMModel.from_pretrained])
def test_model_folder(things, tmp_path, sprung, left, load):
    folder = shutil.copytree(things["model"], tmp_path / "model")
    for name in PICKLES:
        (folder / name).write_bytes(torch_trap(sprung))
    (folder / "preprocessor.pkl").write_bytes(trap(sprung))
    if left == "without weights":
        (folder / "model.safetensors").unlink()
    elif left == "weights are a pickle":
        (folder / "model.safetensors").write_bytes(torch_trap(sprung))
    if left == "with weights":
        load(folder)
    else:
        with pytest.raises((CropLEMError, OSError, SafetensorError)):
            load(folder)
    CropLEMImageProcessor.from_pretrained(folder)
    assert not sprung.exists()


def test_a_model_of_the_hub_with_pickled_weights_alone(things, tmp_path, sprung):
    script = """
import sys
from croplem_hf import CropLEMModel, Embedder
for load in (Embedder.from_pretrained, CropLEMModel.from_pretrained):
    try:
        load("croplem/model")
    except OSError as error:
        print(type(error).__name__)
"""
    files = {path.name: path.read_bytes() for path in things["model"].iterdir() if path.suffix != ".safetensors"}
    with LoopbackHub() as hub:
        hub.create("model", "croplem/model", files | dict.fromkeys(PICKLES, torch_trap(sprung)))
        env = os.environ | hub.environment(tmp_path / "cache") | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(done.stdout.split()) == 2 and not sprung.exists()
        assert not [path for _, path, _ in hub.requests if path.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize(
    "name", ["vectors.npy", "vectors.faiss", "centre.npy", "removed.npy", "lists.faiss", "metadata.parquet"]
)
@pytest.mark.parametrize("content", [trap, npy_trap])
def test_index(things, tmp_path, sprung, name, content):
    folder = shutil.copytree(things["index"], tmp_path / "index")
    (folder / name).write_bytes(content(sprung))
    about = json.loads((folder / "index.json").read_text())
    if name.endswith(".faiss"):
        # The files of an index with lists.
        del about["sha256"]["vectors.npy"]
        (folder / "lists.faiss").write_bytes(content(sprung))
        about["sha256"]["lists.faiss"] = hashlib.sha256((folder / "lists.faiss").read_bytes()).hexdigest()
    # With a checksum that fits, as who plants it would write.
    about["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(about))
    with pytest.raises(CropLEMError, match=f"{name} (is damaged|cannot be read)"):
        EmbeddingIndex.load(folder)
    assert not sprung.exists()


def test_head(things, tmp_path, sprung):
    folder = shutil.copytree(things["head"], tmp_path / "head")
    for name in ("head.pkl", "head.joblib", "model.bin"):
        (folder / name).write_bytes(trap(sprung))
    LogisticHead.load(folder)
    for content in (trap(sprung), torch_trap(sprung)):
        (folder / "head.safetensors").write_bytes(content)
        about = json.loads((folder / "head.json").read_text())
        about["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "head.json").write_text(json.dumps(about))
        with pytest.raises(CropLEMError):
            LogisticHead.load(folder)
    assert not sprung.exists()


def test_table(things, tmp_path, sprung):
    table = read_table(things["embeddings"])
    path = tmp_path / "t.parquet"
    flat = pa.FixedSizeListArray.from_arrays(pa.array(table.vectors.reshape(-1)), 32)
    data = trap(sprung)
    schema_says = {b"croplem": data, b"pandas": data, b"ARROW:schema": data, b"PANDAS_ATTRS": data}
    pickled = pa.table({"id": table.ids, "embedding": flat, "extra": pa.array([data] * len(table))})
    pq.write_table(pickled, path)
    assert read_table(path).metadata["extra"][0].as_py() == data
    pq.write_table(pickled.replace_schema_metadata(schema_says), path)
    refused(read_table, path)
    vectors = pa.table({"id": table.ids, "embedding": pa.array([data] * len(table))})
    pq.write_table(vectors, path)
    with pytest.raises(CropLEMError):
        read_table(path)
    path.write_bytes(data)
    with pytest.raises(CropLEMError):
        read_table(path)
    assert not sprung.exists()


def test_state_of_the_bandit(tmp_path, sprung):
    for content in (trap(sprung), npy_trap(sprung), torch_trap(sprung)):
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(CropLEMError):
            CoverageBandit.load(tmp_path / "state")
    assert not sprung.exists()


LOADERS = (
    r"\bpickle\.loads?\(", r"torch\.load\((?!.*weights_only=True)", r"allow_pickle=True", r"joblib\.load", r"\bdill\b",
)  # fmt: skip


def test_no_code_of_the_library_unpickles():
    root = Path(croplem_hf.__file__).parent
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text().splitlines()
        if any(re.search(pattern, line) for pattern in LOADERS)
    ]
    assert found == []
