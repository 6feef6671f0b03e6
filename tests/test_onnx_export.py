"""The ONNX file: what the command writes gives what `Embedder.encode` gives."""

import json

import numpy as np
import pytest
import torch

from croplem_hf import (
    CheckpointError,
    CropLEMConfig,
    CropLEMImageProcessor,
    CropLEMModel,
    DataError,
    Embedder,
    onnx_export,
)
from croplem_hf.cli import main
from croplem_hf.data import make_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint with indices and spread, whose mean embedding is not zero."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = CropLEMConfig(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, pooling="mean_std", s2_indices=[["B08", "B04"]]
    )
    model = CropLEMModel(config)
    model.embedding_centre.copy_(torch.randn(64))
    model.save_pretrained(folder)
    CropLEMImageProcessor().save_pretrained(folder)
    return folder


@pytest.mark.slow  # torch's exporter takes ten seconds and more
def test_the_file_gives_what_encode_gives(folder, tmp_path, answer):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "encoder.onnx"
    command = ["export", "onnx", str(folder), str(out), "--sensors", "s1,s2", "--size", "9", "--patch-size", "4"]
    found = answer(*command, "--dates", "3,2")
    assert found["difference"] <= found["tolerance"] and list(tmp_path.iterdir()) == [out]
    session = onnxruntime.InferenceSession(out)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["croplem.sensors"]) == ["s1", "s2"] and json.loads(about["croplem.dates"]) == [3, 2]
    processor = CropLEMImageProcessor.from_pretrained(folder)
    constants = json.loads(about["croplem.processor"])
    assert constants["s2_bands"] == processor.s2_bands and constants["s1_std"] == processor.s1_std

    rng = np.random.default_rng(0)
    samples = []
    for name in "abc":
        valid = rng.random((2, 9, 9)) < 0.6
        samples.append(make_sample(
            name, s1=rng.normal(-14, 4, (3, 2, 9, 9)), s1_dates=["2019-01-01", "2019-02-01", "2020-03-01"],
            s2=rng.integers(1, 5000, (2, 13, 9, 9)).astype(np.uint16), s2_dates=["2019-03-01", "2019-06-01"],
            s2_level="L2A", s2_valid=valid, s2_bands=np.tile(np.arange(13) != 10, (2, 1)),
        ))  # fmt: skip
    inputs = {name: value.numpy() for name, value in processor(samples).items()}
    [found] = session.run(["embedding"], inputs)
    expected = Embedder.from_pretrained(folder, device="cpu").encode(samples, patch_size=4)
    np.testing.assert_allclose(found, expected, atol=onnx_export.TOLERANCE)
    assert np.abs(found[0] - found[1]).max() > 100 * onnx_export.TOLERANCE
    empty = {name: np.zeros_like(value) if name.endswith("_valid") else value for name, value in inputs.items()}
    assert np.isnan(session.run(None, empty)[0]).all()


@pytest.mark.parametrize("sensors", [["s1"], ["s2"], ["s1", "s2"]])
def test_masked_tokens_are_as_good_as_none(folder, sensors):
    model = CropLEMModel.from_pretrained(folder).eval()
    dates = [2] * len(sensors)
    inputs = onnx_export.draw_inputs(model.config, sensors, dates, 9, batch=2, seed=0)
    encoder = onnx_export.Encoder(model, sensors, 4, centre=False).eval()
    with torch.inference_mode():
        found = encoder(*(inputs[name] for name in onnx_export.input_names(sensors)))
        expected = model(**inputs, patch_size=4).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(folder, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="differs from the model by"):
        onnx_export.export_onnx(folder, tmp_path / "e.onnx", sensors=["s2"], size=1, patch_size=1)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(DataError, match=r"export to ONNX needs onnx\w*; pip install 'croplem-hf\[onnx\]'"):
        onnx_export.export_onnx(folder, tmp_path / "e.onnx")
    monkeypatch.undo()
    pytest.importorskip("onnxruntime")
    for options in ({"patch_size": 17}, {"size": 0}, {"dates": [1, 2, 3]}, {"dates": 0}, {"sensors": []}):
        with pytest.raises(DataError, match="needs one of"):
            onnx_export.export_onnx(folder, tmp_path / "e.onnx", **options)
    assert main(["export", "onnx", str(folder), str(tmp_path / "e.onnx"), "--sensors", "s3"]) == 1
    assert "--sensors must be s1, s2 or s1,s2" in capsys.readouterr().err
