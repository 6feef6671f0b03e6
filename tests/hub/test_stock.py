"""What is on the Hub works with transformers and datasets alone, in a process that cannot import this library."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from loopback import LoopbackHub

from croplem_hf import Embedder, ShardFolder, generate_sen12ms, open_source
from croplem_hf.data.card import DECODE
from croplem_hf.hub import prepare

ALONE = """
import json, sys
sys.modules["croplem_hf"] = None
"""
MODEL = ALONE + """
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining
processor = AutoImageProcessor.from_pretrained("croplem/model", trust_remote_code=True)
model = AutoModel.from_pretrained("croplem/model", trust_remote_code=True).eval()
whole = AutoModelForPreTraining.from_pretrained("croplem/model", trust_remote_code=True)
file = np.load(sys.argv[1])
sample = {name: file[name] for name in ("s1", "s2")} | json.loads(str(file["about"]))
with torch.inference_mode():
    out = model(**processor([sample]), patch_size=8).pooler_output - model.embedding_centre
print(json.dumps([type(model).__name__, type(whole).__name__, out[0].tolist()]))
"""
DATASET = ALONE + """
from datasets import get_dataset_config_names, load_dataset
stream = load_dataset("croplem/sen12ms", split="train", streaming=True)
rows = [row for row in stream]
row = rows[0]
DECODE
names = get_dataset_config_names("croplem/sen12ms")
season = list(load_dataset("croplem/sen12ms", names[-1], split="train", streaming=True))
embeddings = load_dataset("croplem/embeddings", split="train")
print(json.dumps([[row["id"] for row in rows], row["id"], s2[0, 0, :2].tolist(), str(s2.dtype), names,
                  sorted({row["season"] for row in season}), embeddings.num_rows, len(embeddings[0]["embedding"])]))
""".replace("DECODE", DECODE)


def run(script: str, hub: LoopbackHub, home, *args) -> list:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "PYTHONPATH"))}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, env=env | hub.environment(home), capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub(things):
    with LoopbackHub() as hub:
        for kind, name in (("model", "model"), ("dataset", "sen12ms"), ("embeddings", "embeddings")):
            plan = prepare(kind, things[kind], f"croplem/{name}", licence="cc-by-4.0")
            files = {path: file.read_bytes() for path, file in plan.files.items()}
            hub.create(plan.repo_type, plan.repo, files | {"README.md": plan.card.encode()})
        yield hub


def test_the_model_with_its_own_code(hub, things, tmp_path):
    sample = open_source(generate_sen12ms(tmp_path / "tree", scenes=1, patches_per_scene=1, size=64))[0]
    about = json.dumps({key: sample[key] for key in ("s1_dates", "s2_dates", "s2_level", "gsd")})
    np.savez(tmp_path / "sample.npz", s1=sample["s1"], s2=sample["s2"], about=about)
    kind, whole, vector = run(MODEL, hub, tmp_path, tmp_path / "sample.npz")
    assert (kind, whole) == ("CropLEMModel", "CropLEMForPreTraining")
    expected = Embedder.from_pretrained(things["model"], device="cpu").encode(sample, patch_size=8)
    np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_shards_stream_into_plain_datasets(hub, things, tmp_path):
    ids, first, corner, dtype, names, season, rows, width = run(DATASET, hub, tmp_path)
    source = ShardFolder(things["dataset"], split="train")
    assert sorted(ids) == sorted(source.ids) and len(ids) > 0
    expected = source[source.ids.index(first)]["s2"]
    assert dtype == str(expected.dtype) == "uint16" and corner == expected[0, 0, :2].tolist()
    assert names[0] == "default" and season == [names[-1]]
    assert (rows, width) == (80, 32)
    assert all("safetensors" not in path or method != "PUT" for method, path, _ in hub.requests)
