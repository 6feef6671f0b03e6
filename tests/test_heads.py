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
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.heads import (
    HEADS,
    BoostingHead,
    ConformalSets,
    Head,
    KNNHead,
    LabelledNeighbourhood,
    LogisticHead,
    MLPHead,
    RegionCentre,
    fit_head,
    load_head,
)
from croplem_hf.heads.calibrate import fit_temperature
from croplem_hf.table import EmbeddingsTable

INFO = {"weights_hash": "abc", "processor": {"s1_mean": [1.5]}, "sensors": None, "patch_size": 8, "pooling": "mean",
        "centred": True, "unit": "patch", "model": "m"}  # fmt: skip


@parametrize_with_checks([LogisticHead(), KNNHead(), BoostingHead(trees=30)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_is_a_scikit_learn_classifier(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([MLPHead()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_a_network_is_a_scikit_learn_classifier(estimator, check):
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
    model = make_pipeline(StandardScaler(), LogisticRegression(C=head.C))
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
    assert head.calibrated_ and head.temperature_ == 1.0
    assert 0.7 < head.predict_proba(X).max(axis=1).mean() < 0.99


def test_a_head_is_never_made_surer():
    y = np.arange(600) % 2
    X = np.random.default_rng(0).normal(size=(600, 8)) + y[:, None]
    head = LogisticHead(C=1e-4).fit(X, y)
    assert head.predict_proba(X).max(axis=1).mean() < head.score(X, y) - 0.2
    assert head.calibrated_ and head.temperature_ == 1.0


def overconfident(wrong, size=1):
    """Scores of 50 groups of rows, sure by 3 to 1 in odds' logarithm, of which `wrong` groups are wrong."""
    codes = (np.arange(50) < wrong).astype(int).repeat(size)
    return np.tile([3.0, 0.0], (len(codes), 1)), codes, np.arange(50).repeat(size)


def test_a_temperature_needs_more_than_a_standard_error():
    """As sure as 95 %: with 2 wrong of 50 nothing calls for one, with 5 too little, with 8 enough."""
    found = {wrong: fit_temperature(*overconfident(wrong)) for wrong in (2, 5, 8)}
    assert found[2] == found[5] == 1.0 and found[8] > 1.3
    scores, codes, _ = overconfident(5)
    best = 3 / np.log(45 / 5)
    odds = np.where(codes == 1, -1, 1) * 3.0
    gains = np.log1p(np.exp(-odds)) - np.log1p(np.exp(-odds / best))
    assert 0 < gains.mean() < gains.std(ddof=1) / np.sqrt(50) < 2 * gains.mean()


def test_rows_of_a_group_are_no_further_evidence():
    scores, codes, groups = overconfident(5, size=10)
    assert fit_temperature(scores, codes, groups) == 1.0
    assert fit_temperature(scores, codes) > 1.3
    assert fit_temperature(*overconfident(8, size=10)) == pytest.approx(fit_temperature(*overconfident(8)), rel=1e-3)


def test_few_labels_in_many_numbers_are_told_better_by_the_default_than_by_a_weaker_penalty():
    losses = {C: [] for C in (LogisticHead().C, 1.0)}
    for seed in range(5):
        X, y = blobs(2000, dim=128, seed=seed)
        for C, found in losses.items():
            head = LogisticHead(C=C, calibration="none").fit(X[:200], y[:200])
            found.append(log_loss(y[200:], head.predict_proba(X[200:])))
    assert np.mean(losses[LogisticHead().C]) < np.mean(losses[1.0]) - 0.1


def test_modest_votes_of_neighbours_are_made_surer():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.normal(size=(60, 16)) + 4 * np.eye(16)[y]
    head = KNNHead().fit(X, y)
    assert 0.5 <= head.temperature_ < 1


@pytest.mark.parametrize(
    ("counts", "calibrated"), [((1, 1), False), ((1, 40), False), ((2, 2), True), ((2, 40), True), ((1, 2, 40), True)]
)
def test_rule_for_few_labels(counts, calibrated):
    y = np.repeat(np.arange(len(counts)), counts)
    X = np.random.default_rng(0).normal(size=(len(y), 5)) + y[:, None]
    head = LogisticHead().fit(X, y)
    assert head.calibrated_ == calibrated
    assert calibrated or head.temperature_ == 1.0
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
    table = make_table(X, height=sizes, width=[16, 8] * 30, gsd=[10.0] * 60, block=["x", "y", "z"] * 20,
                       s1_date_count=[None, 4] * 30, s2_date_count=[3] * 49 + [9] * 11)  # fmt: skip
    fit_head(table, y, C=2.0).save(tmp_path / "head")
    head = LogisticHead.load(tmp_path / "head")
    assert head.C == 2.0 and head.n_labels_.sum() == 50
    assert head.info_ == INFO and head.content_hash_ == table.content_hash
    # Only what was learned from counts, and only where it agrees.
    assert head.patch_ == {
        "height": 16, "width": None, "gsd": 10.0, "s1_date_count": [4, 4], "s2_date_count": [3, 9],
    }  # fmt: skip
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


KINDS = [LogisticHead(), KNNHead(), MLPHead(), BoostingHead(trees=10)]


@pytest.mark.parametrize("head", KINDS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_kind_learns_and_comes_back_bit_for_bit(tmp_path, head, classes):
    X, y = blobs(400, classes, class_sep=1.5)
    names = np.array(["a", "b", "c"])[y]
    head.fit(X[:300], names[:300])
    assert head.calibrated_ and np.mean(head.predict(X[300:]) == names[300:]) > 0.7
    head.save(tmp_path / "head")
    for again in (load_head(tmp_path / "head"), type(head).load(tmp_path / "head"), Head.load(tmp_path / "head")):
        assert type(again) is type(head) and again.get_params() == head.get_params()
        np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))


def test_another_kind_of_head_is_refused(tmp_path):
    X, y = blobs(40)
    KNNHead().fit(X, y).save(tmp_path / "head")
    with pytest.raises(CheckpointError, match="a KNNHead, not a LogisticHead; Head.load reads any kind"):
        LogisticHead.load(tmp_path / "head")
    about = json.loads((tmp_path / "head" / "head.json").read_text())
    (tmp_path / "head" / "head.json").write_text(json.dumps(about | {"kind": "Evil"}))
    with pytest.raises(CheckpointError, match="unknown kind 'Evil'"):
        load_head(tmp_path / "head")


@pytest.mark.parametrize("classes", [2, 3])
def test_kinds_are_the_models_that_they_stand_for(classes):
    X, y = blobs(300, classes)
    Z = StandardScaler().fit_transform(X)
    boosting = BoostingHead(20, calibration="none").fit(X, y)
    trees = HistGradientBoostingClassifier(
        max_iter=20, max_leaf_nodes=15, l2_regularization=1.0, max_bins=63, min_samples_leaf=5, early_stopping=False,
        random_state=0,
    ).fit(Z, y)  # fmt: skip
    np.testing.assert_allclose(boosting.predict_proba(X), trees.predict_proba(Z), atol=1e-12)
    network = MLPHead(calibration="none").fit(X, y)
    other = MLPClassifier((64,)).partial_fit(Z[:50], y[:50], classes=np.unique(y))
    assert network.hidden_coef_.shape == other.coefs_[0].shape and network.coef_.shape == other.coefs_[1].shape
    other.coefs_ = [network.hidden_coef_, network.coef_]
    other.intercepts_ = [network.hidden_intercept_, network.intercept_]
    np.testing.assert_allclose(network.predict_proba(X), other.predict_proba(Z), atol=1e-9)
    near = KNNHead(15, calibration="none").fit(X[:200], y[:200])
    Z = StandardScaler().fit(X[:200]).transform(X)
    votes = KNeighborsClassifier(15, metric="cosine", weights="distance").fit(Z[:200], y[:200]).predict_proba(Z[200:])
    np.testing.assert_allclose(near.predict_proba(X[200:]), (15 * votes + 1 / classes) / 16, atol=1e-4)


@pytest.mark.parametrize("head", [type(head) for head in KINDS])
def test_class_weights_find_more_of_a_rare_class(head):
    X, y = blobs(600, weights=[0.9], class_sep=0.4)
    plain, weighted = (head(class_weight=w, calibration="none").fit(X[:400], y[:400]) for w in (None, "balanced"))
    assert (weighted.predict_proba(X[400:])[:, 1] - plain.predict_proba(X[400:])[:, 1]).mean() > 0.02


def test_isotonic_curves_calibrate_where_labels_are_many(tmp_path):
    X, y = blobs(4000, dim=64, flip_y=0.3)
    plain, curved = (LogisticHead(100.0, calibration=c).fit(X[:300], y[:300]) for c in ("none", "isotonic"))
    losses = [log_loss(y[300:], head.predict_proba(X[300:])) for head in (plain, curved)]
    assert losses[1] < losses[0] - 0.02
    np.testing.assert_allclose(curved.predict_proba(X).sum(axis=1), 1)
    curved.save(tmp_path / "head")
    np.testing.assert_array_equal(load_head(tmp_path / "head").predict_proba(X), curved.predict_proba(X))
    with pytest.raises(DataError, match="needs 30 labels of each class, the rarest has"):
        LogisticHead(calibration="isotonic").fit(X[:40], y[:40])
    with pytest.raises(DataError, match="calibration is one of temperature, isotonic, none, found 'platt'"):
        LogisticHead(calibration="platt").fit(X, y)


@given(st.integers(0, 10**6), st.sampled_from([0.8, 0.9, 0.95]))
def test_sets_hold_the_true_class_as_often_as_asked(seed, confidence):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), size=3000)
    # The head is wrongly sure of itself: the sets make up for it.
    y = np.array([rng.choice(3, p=row) for row in p])
    sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    sets = ConformalSets().fit(sharp[:1000], y[:1000]).predict(sharp[1000:], confidence=confidence)
    assert sets[np.arange(2000), y[1000:]].mean() == pytest.approx(confidence, abs=0.045)


def test_sets_of_a_region_are_of_its_own_labels():
    rng = np.random.default_rng(0)
    y, regions = rng.integers(2, size=400), np.repeat(["easy", "hard"], 200)
    right = rng.random(400) < np.where(regions == "easy", 0.99, 0.6)
    proba = np.where((np.arange(2) == y[:, None]) == right[:, None], 0.9, 0.1)
    sets = ConformalSets().fit(proba, y, regions)
    found = sets.predict(proba, regions, confidence=0.9)
    assert found[:200].sum(axis=1).mean() == 1 and found[200:].sum(axis=1).mean() == 2
    # A region without labels, and more confidence than nine labels allow: every class.
    assert sets.predict(proba[:2], ["new", "new"]).all()
    assert ConformalSets().fit(proba[:8], y[:8]).predict(proba[:3], confidence=0.9).all()
    assert not ConformalSets().fit(proba[:9], y[:9]).predict(proba[:3], confidence=0.9).all()
    with pytest.raises(DataError, match="confidence lies between 0 and 1"):
        sets.predict(proba, regions, confidence=90)
    with pytest.raises(DataError, match="regions must be given here as they were"):
        sets.predict(proba)


def test_a_head_keeps_its_sets_and_neighbourhood(tmp_path):
    X, codes = blobs(300)
    y = np.array(["a", "b"], object)[codes]
    head = fit_head(make_table(X[:200], block=np.arange(200) // 4), y[:200], kind="logistic")
    with pytest.raises(DataError, match="no labels for sets of classes"):
        head.predict_set(X)
    head.conformalise(X[200:], y[200:].tolist())
    with pytest.raises(DataError, match=r"class 'c' was not seen in training \(known: a, b\)"):
        head.conformalise(X[:1], ["c"])
    head.save(tmp_path / "head")
    again = load_head(tmp_path / "head")
    np.testing.assert_array_equal(again.predict_set(X, confidence=0.8), head.predict_set(X, confidence=0.8))
    np.testing.assert_array_equal(again.far_from_labels(X), head.far_from_labels(X))
    with pytest.raises(DataError, match="keeps no labelled embeddings"):
        LogisticHead().fit(X, codes).far_from_labels(X)


def test_rows_unlike_all_labels_are_told():
    rng = np.random.default_rng(0)
    Z, strange = rng.normal(size=(500, 4)) + 6, rng.normal(size=(100, 4)) * [1, 1, 1, 20]
    near = LabelledNeighbourhood().fit(Z[:300])
    assert near.far(Z[300:]).mean() == pytest.approx(0.05, abs=0.05)
    assert near.far(strange).mean() > 0.8 and not near.far(Z[:300]).any()
    # Rows of one block are copies of each other: only other blocks say how far labels lie apart.
    copies, blocks = np.repeat(Z[:100], 3, axis=0), np.repeat(np.arange(100), 3)
    assert LabelledNeighbourhood().fit(copies, blocks).far(Z[300:]).mean() < 0.2
    assert LabelledNeighbourhood().fit(copies).far(Z[300:]).mean() > 0.9


def test_centring_regions_takes_away_what_moves_them(tmp_path):
    rng = np.random.default_rng(0)
    region = np.repeat(["north", "south"], 400)
    y = rng.integers(2, size=800)
    X = rng.normal(size=(800, 6)) + 2 * y[:, None] * np.eye(6)[0] + 5 * (region == "south")[:, None]
    labels = np.where((region == "north"), np.array(["a", "b"], object)[y], None)
    table = make_table(X, region=region)
    plain, head = fit_head(table, labels), fit_head(table, labels, centre_by="region")
    south = region == "south"
    truth = np.array(["a", "b"])[y]
    assert np.mean(plain.predict(table.vectors[south]) == truth[south]) < 0.6
    assert np.mean(head.predict(table.vectors[south], region[south]) == truth[south]) > 0.8
    head.save(tmp_path / "head")
    again = load_head(tmp_path / "head")
    np.testing.assert_array_equal(again.predict_proba(table.vectors, region), head.predict_proba(table.vectors, region))
    one = again.for_region("south")
    here = table.vectors[south]
    np.testing.assert_array_equal(one.predict_proba(here), head.predict_proba(here, "south"))
    fresh = again.for_region("east", here + 3)
    np.testing.assert_allclose(fresh.predict_proba(here + 3), one.predict_proba(here), atol=0.05)
    assert plain.for_region("anything") is plain
    with pytest.raises(DataError, match="name the region of the rows"):
        again.predict_proba(table.vectors)
    with pytest.raises(DataError, match=r"region 'west' is not known to the head \(known: north, south\)"):
        again.for_region("west")
    with pytest.raises(DataError, match="'p3' has no 'region'"):
        fit_head(make_table(X, region=["a"] * 3 + [None] + ["b"] * 796), labels, centre_by="region")


def test_tiny_regions_borrow_the_mean_of_all():
    X = np.random.default_rng(0).normal(size=(101, 3)) + 4
    X[0] = 100
    scaler = RegionCentre().fit(X, ["tiny"] + ["big"] * 100)
    assert np.isfinite(scaler.transform(X[:1], "tiny")).all()
    assert np.abs(scaler.mean_[1] - X.mean(axis=0)).max() < np.abs(X[0] - X.mean(axis=0)).max() / 5


def test_fit_head_knows_its_kinds():
    X, y = blobs(60)
    for name, kind in HEADS.items():
        assert type(fit_head(make_table(X, gsd=[1.0] * 60), y.astype(str), kind=name)) is kind
    with pytest.raises(DataError, match="a head is one of logistic, knn, mlp, boosting, found 'forest'"):
        fit_head(make_table(X, gsd=[1.0] * 60), y.astype(str), kind="forest")
