"""Heads: scikit-learn's own checks, calibration, few labels, and files that give the same probabilities back."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.heads import BoostingHead, KNNHead, LogisticHead, MLPHead, fit_head
from croplem_hf.table import EmbeddingsTable

INFO = {"weights_hash": "abc", "processor": {"s1_mean": [1.5]}, "sensors": None, "patch_size": 8, "pooling": "mean",
        "centred": True, "unit": "patch", "model": "m"}  # fmt: skip


@parametrize_with_checks([LogisticHead(), KNNHead(), MLPHead(), BoostingHead(trees=30)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_is_a_scikit_learn_classifier(estimator, check):
    check(estimator)


def blobs(count=600, classes=2, seed=0, dim=16, **kwargs):
    options = {"n_informative": 6, "n_redundant": 2, "class_sep": 0.7, "flip_y": 0.1} | kwargs
    return make_classification(count, dim, n_classes=classes, random_state=seed, **options)


def make_table(X, **columns):
    return EmbeddingsTable([f"p{n}" for n in range(len(X))], X.astype(np.float32), pa.table(columns), dict(INFO))


@pytest.mark.parametrize("classes", [2, 4])
def test_is_the_pipeline_that_it_stands_for(classes):
    X, y = blobs(classes=classes)
    head = LogisticHead(C=0.3).fit(X, y)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=5000)).fit(X, y)
    scores = model.decision_function(X)
    if classes == 2:
        expected = expit(scores / head.temperature_)
        np.testing.assert_allclose(head.predict_proba(X)[:, 1], expected, atol=2e-3)
    assert np.mean(head.predict(X) == model.predict(X)) > 0.99
    np.testing.assert_allclose(head.predict_proba(X).sum(axis=1), 1)


def test_temperature_is_that_of_scikit_learn_where_labels_are_many():
    X, y = blobs(4000)
    head = LogisticHead().fit(X, y)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    other = CalibratedClassifierCV(model, method="temperature", ensemble=False, cv=folds).fit(X, y)
    assert head.calibrated_
    np.testing.assert_allclose(head.predict_proba(X), other.predict_proba(X), atol=5e-3)


def test_calibration_helps_on_rows_that_it_never_saw():
    X, y = blobs(3000, dim=64, flip_y=0.3)
    head = LogisticHead(C=10.0).fit(X[:150], y[:150])
    calibrated = log_loss(y[150:], head.predict_proba(X[150:]))
    head.temperature_ = 1.0
    assert calibrated < log_loss(y[150:], head.predict_proba(X[150:])) - 0.1


def test_few_labels_that_are_all_right_do_not_make_it_certain():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 6)
    X = rng.normal(size=(12, 4)) + 8 * y[:, None]
    head = LogisticHead().fit(X, y)
    assert head.calibrated_
    assert 0.85 < head.predict_proba(X).max(axis=1).mean() < 0.99


@pytest.mark.parametrize(
    ("counts", "calibrated"), [((1, 1), False), ((1, 40), False), ((2, 2), True), ((2, 40), True), ((1, 2, 40), True)]
)
def test_rule_for_few_labels(counts, calibrated):
    y = np.repeat(np.arange(len(counts)), counts)
    X = np.random.default_rng(0).normal(size=(len(y), 5)) + y[:, None]
    head = LogisticHead().fit(X, y)
    assert head.calibrated_ == calibrated
    assert (head.temperature_ == 1.0) == (not calibrated)
    assert head.n_labels_.tolist() == list(counts)
    assert head.predict_proba(X).shape == (len(y), len(counts))


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 40))
def test_probabilities_of_any_labels(seed, classes, count):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(classes, size=count)])
    X = rng.normal(size=(len(y), 6)).astype(np.float32)
    proba = LogisticHead().fit(X, y).predict_proba(X)
    assert np.isfinite(proba).all() and (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_blocks_make_it_less_sure_where_neighbours_are_alike():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    y = rng.integers(2, size=40)[groups]
    X = rng.normal(size=(40, 20))[groups] + 0.1 * rng.normal(size=(400, 20))
    alone, grouped = LogisticHead().fit(X, y), LogisticHead().fit(X, y, groups=groups)
    assert grouped.temperature_ > 3 * alone.temperature_
    # The same blocks under other names are the same blocks.
    assert LogisticHead().fit(X, y, groups=np.char.add("b", groups.astype(str))).temperature_ > 3 * alone.temperature_


def test_blocks_of_one_class_each_leave_it_uncalibrated():
    X, y = blobs(40)
    head = LogisticHead().fit(X, y, groups=y)
    assert not head.calibrated_ and head.temperature_ == 1.0


def test_refuses_what_it_cannot_learn_from():
    X, y = blobs(20)
    with pytest.raises(DataError, match="all 20 labels are of one class, 'a'; a head needs two"):
        LogisticHead().fit(X, np.full(20, "a"))
    with pytest.raises(DataError, match="groups name 3 rows, X has 20"):
        LogisticHead().fit(X, y, groups=[1, 2, 3])
    head = LogisticHead().fit(X, y)
    X[3, 2] = np.nan
    with pytest.raises(DataError, match=r"row 3 of X holds NaN or infinite values \(1 such rows\)"):
        LogisticHead().fit(X, y)
    with pytest.raises(DataError, match="row 3 of X"):
        head.predict_proba(X)
    with pytest.raises(DataError, match="no row of the table has a label"):
        fit_head(make_table(X, gsd=[1.0] * 20), [None] * 20)


def test_coefficients_stored_by_columns_come_back_too(tmp_path):
    X, codes = blobs(classes=3)
    head = LogisticHead().fit(X, codes)
    head.coef_ = np.asfortranarray(head.coef_)
    head.save(tmp_path / "head")
    np.testing.assert_array_equal(LogisticHead.load(tmp_path / "head").coef_, head.coef_)


@pytest.mark.parametrize("names", [["crop", "other"], [3, 11], ["a", "b", "ü"]])
def test_comes_back_from_its_files_bit_for_bit(tmp_path, names):
    X, codes = blobs(classes=len(names))
    head = LogisticHead(C=0.5, random_state=3).fit(X.astype(np.float32), np.array(names)[codes])
    head.save(tmp_path / "head")
    again = LogisticHead.load(tmp_path / "head")
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X), head.predict(X))
    assert again.classes_.tolist() == names and again.get_params() == head.get_params()
    assert (again.temperature_, again.calibrated_) == (head.temperature_, head.calibrated_)
    assert {path.name for path in (tmp_path / "head").iterdir()} == {"head.json", "head.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_class_weights_come_back_too(tmp_path):
    X, y = blobs()
    weights = {np.int64(0): 1.0, np.int64(1): 2.0}
    LogisticHead(class_weight=weights).fit(X, y).save(tmp_path / "head")
    assert LogisticHead.load(tmp_path / "head").class_weight == weights
    LogisticHead(class_weight="balanced").fit(X, y).save(tmp_path / "head")
    assert LogisticHead.load(tmp_path / "head").class_weight == "balanced"


def test_remembers_its_embeddings(tmp_path):
    X, codes = blobs(60)
    y = np.array(["a", "b"], object)[codes]
    y[50:] = None
    sizes = [16] * 50 + [32] * 10
    table = make_table(X, height=sizes, width=[16, 8] * 30, gsd=[10.0] * 60, block=["x", "y", "z"] * 20)
    fit_head(table, y, C=2.0).save(tmp_path / "head")
    head = LogisticHead.load(tmp_path / "head")
    assert head.C == 2.0 and head.n_labels_.sum() == 50
    assert head.info_ == INFO and head.content_hash_ == table.content_hash
    # Only what was learned from counts, and only where it agrees.
    assert head.patch_ == {"height": 16, "width": None, "gsd": 10.0}
    about = json.loads((tmp_path / "head" / "head.json").read_text())
    assert about["settings"] == table.settings and about["unit"] == "patch"
    head.check_settings(table.info | {"model": "renamed", "created": "today"})
    with pytest.raises(CheckpointError, match="differ from those of the head in weights_hash, patch_size;"):
        head.check_settings(INFO | {"weights_hash": "other", "patch_size": 4})


def test_blocks_of_the_table_are_used():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    y = rng.integers(2, size=20)[groups].astype(str)
    X = rng.normal(size=(20, 16))[groups] + 0.1 * rng.normal(size=(200, 16))
    table = make_table(X, block=groups, gsd=[1] * 200)
    assert fit_head(table, y).temperature_ > 2 * fit_head(table, y, block="none").temperature_


def test_saving_replaces_a_head_and_nothing_else(tmp_path):
    X, y = blobs(40)
    head = LogisticHead().fit(X, y)
    head.save(tmp_path / "deep" / "head")
    head.save(tmp_path / "deep" / "head")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="exists and is no head"):
        head.save(tmp_path / "mine")
    with pytest.raises(DataError, match="text or whole numbers"):
        LogisticHead().fit(X, y == 1).save(tmp_path / "bool")
    assert not (tmp_path / "bool").exists()


def test_refuses_files_that_are_no_head(tmp_path):
    X, y = blobs(40)
    folder = tmp_path / "head"
    with pytest.raises(CheckpointError, match="no head here"):
        LogisticHead.load(folder)
    LogisticHead().fit(X, y).save(folder)
    about = json.loads((folder / "head.json").read_text())
    tensors = (folder / "head.safetensors").read_bytes()

    def breaks(match, json_text=None, data=tensors):
        (folder / "head.json").write_text(json.dumps(about) if json_text is None else json_text)
        (folder / "head.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=match):
            LogisticHead.load(folder)

    breaks("is damaged", "{")
    breaks("is damaged", "[]")
    breaks("format 99, this library reads 2", json.dumps(about | {"format": 99}))
    breaks("checksum", data=tensors[:-1] + bytes([tensors[-1] ^ 1]))
    breaks("not the files of a LogisticHead", json.dumps({k: v for k, v in about.items() if k != "parameters"}))
    (folder / "head.safetensors").unlink()
    with pytest.raises(CheckpointError, match="head.safetensors is missing"):
        LogisticHead.load(folder)


def test_few_labels_of_many_classes_raise_no_warning():
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = LogisticHead().fit(rng.normal(size=(10, 4)), np.array(list("abcdefghij")))
    assert not head.calibrated_
