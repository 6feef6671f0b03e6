"""The scripts that prepare pretraining data."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from croplem_hf import open_source
from croplem_hf.errors import DataError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_targets_are_whitened_as_far_as_asked():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 1)) * [3.0, 1.0] + rng.normal(size=(500, 2)) * 0.3
    for power, ratio in ((1.0, 1.0), (0.5, None), (0.0, None)):
        out = load("latent_targets").shrink(vectors, np.ones(500), 2, power)
        variance = out.var(axis=0)
        assert (out**2).mean() == pytest.approx(1) and abs(np.corrcoef(out.T)[0, 1]) < 1e-6
        assert ratio is None or variance[0] / variance[1] == pytest.approx(ratio, rel=1e-6)
        widths = variance[0] / variance[1] if power == 0 else None
    assert widths > 10


def test_targets_hold_the_rows_that_were_asked_for(tmp_path, monkeypatch):
    ids = [f"p{n}" for n in range(12)]
    pq.write_table(
        pa.table({"id": ids, "source": ["a"] * 6 + ["b"] * 6, "region": ["x", "y"] * 6}), tmp_path / "series.parquet"
    )
    rng = np.random.default_rng(0)
    vectors = {"one": rng.normal(size=(11, 3)).astype(np.float16), "two": rng.normal(size=(11, 2)).astype(np.float16)}
    np.savez(tmp_path / "peers.npz", id=np.array(ids[:11]), **vectors)
    out = tmp_path / "out.parquet"
    arguments = [tmp_path / "series.parquet", tmp_path / "peers.npz", out, "--sources", "a", "--without-regions", "y"]
    monkeypatch.setattr("sys.argv", ["latent_targets.py", *map(str, arguments), "--rank", "3"])
    load("latent_targets").main()
    table = pq.read_table(out)
    assert table["id"].to_pylist() == ["p0", "p2", "p4"]
    # Three points about their mean span two dimensions.
    assert {len(vector) for vector in table["embedding"].to_pylist()} == {2}


def test_composites_are_medians_of_their_months():
    chips = load("chips_series")
    dates = np.array(["2019-01-05", "2019-01-20", "2019-03-02"], "datetime64[D]")
    values = np.array([1.0, 3.0, np.nan])[:, None, None, None] * np.ones((3, 2, 1, 1))
    edges = np.array(["2019-01-01", "2019-02-01", "2019-03-01", "2019-04-01"], "datetime64[D]")
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        out = chips.composites(values, dates, edges)
    assert out.shape == (3, 2, 1, 1) and (out[0] == 2).all() and np.isnan(out[1:]).all()


def test_real_chips_become_series(tmp_path, real_data, monkeypatch):
    out = tmp_path / "chips.parquet"
    arguments = ["--worldcereal", real_data / "worldcereal_chips", "--cropharvest", real_data / "cropharvest_chips"]
    monkeypatch.setattr("sys.argv", ["chips_series.py", str(out), *map(str, arguments), "--every", "8"])
    try:
        load("chips_series").main()
    except (OSError, DataError) as error:
        pytest.skip(f"this rasterio reads no netCDF ({error})")
    source = open_source(out)
    samples = [source[n] for n in range(len(source))]
    assert {s["s2_level"] for s in samples} == {"L1C", "L2A"}
    assert {len(s["s2_dates"]) for s in samples} == {2, 12}
    radar = np.concatenate([s["s1"].ravel() for s in samples if s["s1"] is not None])
    assert -25 < np.nanmedian(radar) < -5
