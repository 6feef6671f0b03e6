"""Saving and loading: bit by bit, by the Auto classes, and by remote code without this library."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining

from croplem_hf import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, CropLEMModel, make_sample


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = CropLEMForPreTraining(CropLEMConfig(num_hidden_layers=2)).eval()
    model.croplem.embedding_centre.copy_(torch.randn(128))
    model.save_pretrained(folder)
    CropLEMImageProcessor(max_deviation=6.0).save_pretrained(folder)
    return model, folder


def inputs(processor):
    rng = np.random.default_rng(0)
    s = make_sample(
        "a", s1=rng.normal(-14, 4, (2, 2, 16, 16)), s1_dates=["2019-01-01", "2019-02-01"],
        s2=rng.integers(1, 5000, (1, 13, 16, 16)).astype(np.uint16), s2_dates=["2019-03-01"], s2_level="L1C",
    )  # fmt: skip
    return processor(s)


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_round_trip_is_bitwise(saved, tmp_path):
    model, folder = saved
    again = CropLEMForPreTraining.from_pretrained(folder)
    encoder = CropLEMModel.from_pretrained(folder)
    assert equal(model, again) and equal(model.croplem, encoder)
    encoder.save_pretrained(tmp_path)
    assert equal(encoder, CropLEMModel.from_pretrained(tmp_path))
    processor = CropLEMImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        a, b = (m(**inputs(processor)).pooler_output for m in (model.croplem, encoder.eval()))
    assert torch.equal(a, b)


def test_config_and_processor_round_trip(saved):
    model, folder = saved
    config = CropLEMConfig.from_pretrained(folder)
    assert config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    assert CropLEMImageProcessor.from_pretrained(folder).max_deviation == 6.0
    assert not (folder / "pytorch_model.bin").exists() and (folder / "model.safetensors").exists()


def test_auto_classes(saved):
    model, folder = saved
    assert type(AutoConfig.from_pretrained(folder)) is CropLEMConfig
    assert type(AutoImageProcessor.from_pretrained(folder)) is CropLEMImageProcessor
    pretraining = AutoModelForPreTraining.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder)
    assert type(pretraining) is CropLEMForPreTraining and equal(pretraining, model)
    assert type(encoder) is CropLEMModel and equal(encoder, model.croplem)


REMOTE = """
import json, sys, numpy as np, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining
folder = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
rng = np.random.default_rng(0)
s = {"s1": rng.normal(-14, 4, (2, 2, 16, 16)), "s1_dates": ["2019-01-01", "2019-02-01"],
     "s2": rng.integers(1, 5000, (1, 13, 16, 16)).astype(np.uint16), "s2_dates": ["2019-03-01"], "s2_level": "L1C"}
with torch.inference_mode():
    out = model(**processor(s)).pooler_output
assert not any(name.startswith("croplem_hf") for name in sys.modules)
print(json.dumps(out[0].tolist()))
"""
REFUSED = """
import sys
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)
"""


def run(code, folder, home):
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=env, cwd=home)


def test_remote_code_in_a_fresh_process(saved, tmp_path):
    model, folder = saved
    done = run(REMOTE, folder, tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        here = model.croplem(**inputs(CropLEMImageProcessor.from_pretrained(folder))).pooler_output[0]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), here.tolist(), atol=1e-6)


def test_remote_code_is_refused_without_trust(saved, tmp_path):
    done = run(REFUSED, saved[1], tmp_path)
    assert done.returncode != 0 and "trust_remote_code" in done.stderr


def test_what_may_not_be_split_is_there(saved):
    model, _ = saved
    kinds = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= kinds


def test_shapes_of_the_outputs_are_those_of_the_docstrings(saved):
    model, folder = saved
    given = inputs(CropLEMImageProcessor.from_pretrained(folder))
    with torch.no_grad():
        out = model(**given, generator=torch.Generator().manual_seed(0))
        encoded = model.croplem(**given)
    assert out.loss.shape == () and out.logits is None and out.mask.shape == out.ids_restore.shape == (1, 12)
    assert out.s1_reconstruction.shape == out.s1_target.shape == (1, 2, 2, 16, 16)
    assert out.s2_reconstruction.shape == out.s2_target.shape == (1, 1, 13, 16, 16)
    assert encoded.last_hidden_state.shape == (1, 12, 128) and encoded.pooler_output.shape == (1, 128)
    assert encoded.token_mask.shape == (1, 12) and encoded.token_index.shape == (1, 12, 4)
    assert out.s1_target.dtype == encoded.token_mask.dtype == torch.bool and encoded.token_index.dtype == torch.long
