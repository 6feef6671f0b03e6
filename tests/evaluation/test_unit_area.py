"""Areas by unit: by hand, on generated populations, and through the command line over a map."""

import json

import numpy as np
import pyarrow as pa
import pyogrio
import pytest
import shapely
from area_maps import write_map, write_sample
from rasterio.crs import CRS
from scipy.stats import beta, t

from croplem_hf.cli import main
from croplem_hf.data.scene_fields import transformed
from croplem_hf.errors import DataError
from croplem_hf.evaluation.map_area import map_area
from croplem_hf.evaluation.unit_area import unit_estimates

GEOMETRY = {"geometry_name": "geometry"}


def repeat(*runs):
    return np.concatenate([np.full(count, name, object) for name, count in runs]).astype(str)


def test_both_estimates_by_hand():
    # Inside 20 places a class of the map, outside 40 and 80.
    mapped = repeat(("crop", 20), ("other", 20), ("crop", 40), ("other", 80))
    true = repeat(("crop", 18), ("other", 2), ("crop", 2), ("other", 18), ("crop", 27), ("other", 13), ("crop", 3),
                  ("other", 77))  # fmt: skip
    inside = np.arange(160) < 40
    sizes, counts = {"crop": 3e9, "other": 7e9}, {"crop": 3e8, "other": 7e8}
    found = unit_estimates(mapped, true, mapped, sizes, counts, inside, by_class=True)
    crop, other = found["classes"]
    assert crop["n_mapped"] == crop["n_reference"] == 20 and found["n"] == 40
    assert crop["direct"]["value"] == pytest.approx(0.3 * 0.9 + 0.7 * 0.1)
    variance = 0.3**2 * 0.9 * 0.1 / 19 + 0.7**2 * 0.1 * 0.9 / 19
    assert crop["direct"]["se"] == pytest.approx(np.sqrt(variance))
    assert crop["synthetic"]["value"] == pytest.approx(0.3 * 45 / 60 + 0.7 * 5 / 100)
    variance = 0.3**2 * 0.75 * 0.25 / 59 + 0.7**2 * 0.05 * 0.95 / 99
    assert crop["synthetic"]["se"] == pytest.approx(np.sqrt(variance))
    for kind in ("direct", "synthetic"):
        assert crop[kind]["value"] + other[kind]["value"] == pytest.approx(1)
        assert crop[kind]["low"] == pytest.approx(1 - other[kind]["high"])
    # Where the design says nothing of the map, the unit is a domain: 20 of 40 places, all of weight one.
    domain = unit_estimates(mapped, true, repeat(("all", 160)), {"all": 1e10}, counts, inside, by_class=False)
    assert domain["classes"][0]["direct"]["value"] == pytest.approx(0.5)
    assert domain["classes"][0]["direct"]["se"] == pytest.approx(np.sqrt(0.25 / 40 * 160 / 159))
    assert domain["classes"][0]["synthetic"]["value"] == pytest.approx(crop["synthetic"]["value"])


UNIT = np.repeat(np.arange(3), 6_000)
SHARES = np.array([0.2, 0.3, 0.5])


def wrong_by_unit(*rates):
    """A map of 3 units and the truth; rates are the map's (omission, commission) in each."""
    rng = np.random.default_rng(0)
    true = rng.random(len(UNIT)) < SHARES[UNIT]
    omitted, committed = np.array(rates)[UNIT].T
    mapped = np.where(true, rng.random(len(UNIT)) >= omitted, rng.random(len(UNIT)) < committed)
    return (np.where(flags, "crop", "other") for flags in (mapped, true))


def wrong_alike():
    """A map of 3 units of which each class is as often wrong in all, and the truth."""
    rng = np.random.default_rng(0)
    mapped = rng.random(len(UNIT)) < SHARES[UNIT]
    true = rng.random(len(UNIT)) < np.where(mapped, 0.8, 0.07)
    return (np.where(flags, "crop", "other") for flags in (mapped, true))


def coverage(mapped, true, draws, by_class=True):
    """How often the intervals hold the truth, (3 units, direct and synthetic), over samples of 300 places."""
    strata = mapped if by_class else np.where(np.arange(len(UNIT)) % 3 == 0, "wet", "dry")
    rng = np.random.default_rng(1)
    members = {str(name): np.flatnonzero(strata == name) for name in np.unique(strata)}
    sizes = {name: len(own) for name, own in members.items()}
    counts = [{name: np.sum(mapped[UNIT == k] == name) for name in ("crop", "other")} for k in range(3)]
    share = [np.mean(true[UNIT == k] == "crop") for k in range(3)]
    hits = np.zeros((3, 2))
    for _ in range(draws):
        rows = np.concatenate([rng.choice(own, 150, replace=False) for own in members.values()])
        for k in range(3):
            one = mapped[rows], true[rows], strata[rows], sizes, counts[k], UNIT[rows] == k
            crop = unit_estimates(*one, by_class=by_class)["classes"][0]
            hits[k] += [crop[kind]["low"] <= share[k] <= crop[kind]["high"] for kind in ("direct", "synthetic")]
    return hits / draws


@pytest.mark.parametrize("by_class", [True, False])
def test_direct_intervals_hold_whatever_the_map_does(by_class):
    assert coverage(*wrong_by_unit((0.3, 0.0), (0.2, 0.1), (0.02, 0.3)), 100, by_class)[:, 0].min() >= 0.9


def test_synthetic_intervals_hold_on_their_assumption_alone():
    assert coverage(*wrong_alike(), 100)[:, 1].min() >= 0.9
    assert coverage(*wrong_by_unit((0.7, 0.0), (0.0, 0.0), (0.0, 0.6)), 30)[:, 1].min() < 0.5


def test_few_places_give_no_direct_estimate():
    mapped = repeat(("crop", 60), ("other", 60))
    counts, sizes = {"crop": 100.0, "other": 900.0}, {"crop": 1e6, "other": 1e6}
    few = unit_estimates(mapped, mapped, mapped, sizes, counts, np.arange(120) < 29, by_class=True)
    assert few["no_direct"] == "29 labelled places in it, 30 at least are needed"
    assert few["classes"][0]["direct"] is None and few["classes"][0]["synthetic"]["value"] == pytest.approx(0.1)
    one = unit_estimates(mapped, mapped, mapped, sizes, counts, np.arange(120) < 61, by_class=True)
    assert one["no_direct"] == "1 labelled places where the map says other, 2 at least are needed"
    counts["water"] = 5.0
    strange = unit_estimates(mapped, mapped, mapped, sizes, counts, np.arange(120) < 62, by_class=True)
    assert strange["no_synthetic"].startswith("0 labelled places in the whole map where it says water")


@pytest.mark.parametrize("share", [0.3, 0.37, 0.5, 0.7])
@pytest.mark.parametrize("crops", [29, 31, 40])
def test_a_unit_without_confusion_counts_its_places_once_whatever_rounding_leaves(crops, share):
    """Clopper and Pearson at n: the sample met no error, which does not make it worth four times its size."""
    mapped, sizes = repeat(("crop", crops), ("other", 70 - crops)), {"crop": share * 1e6, "other": (1 - share) * 1e6}
    crop = unit_estimates(mapped, mapped, mapped, sizes, sizes, np.ones(70, bool), by_class=True)["classes"][0]
    effective = 70 * (t.ppf(0.975, 69) / t.ppf(0.975, 68)) ** 2
    for kind in ("direct", "synthetic"):
        assert crop[kind]["se"] == 0
        low, high = beta.ppf(
            [0.025, 0.975], share * effective + np.array([0, 1]), (1 - share) * effective + np.array([1, 0])
        )
        assert crop[kind]["low"] == pytest.approx(low) and crop[kind]["high"] == pytest.approx(high)


def test_a_class_that_the_unit_has_no_place_of_has_an_estimate_too():
    mapped = repeat(("crop", 40), ("other", 40), ("other", 2))
    true = repeat(("crop", 40), ("other", 40), ("water", 2))
    sizes, inside = {"crop": 1e6, "other": 1e6}, np.arange(82) < 80
    for by_class in (True, False):
        found = unit_estimates(mapped, true, mapped, sizes, sizes, inside, by_class=by_class)
        water = found["classes"][2]
        assert water["class"] == "water" and water["n_reference"] == 0
        assert water["direct"]["value"] == 0 and 0 < water["direct"]["high"] < 0.1


def test_more_places_than_a_class_has_room_for_give_a_reason_and_stop_no_other_unit():
    mapped = repeat(("crop", 40), ("other", 2))
    sizes, counts = {"crop": 1e6, "other": 1e6}, {"crop": 1e5, "other": 1.5}
    found = unit_estimates(mapped, mapped, mapped, sizes, counts, np.ones(42, bool), by_class=True)
    assert found["no_direct"].startswith("2 labelled places where the map says other, more than its area")
    assert found["classes"][0]["synthetic"]["value"] == pytest.approx(1, abs=1e-3)


def test_strata_that_hold_no_place_of_the_classes_of_a_unit_cost_the_synthetic_estimate_nothing():
    mapped = repeat(("crop", 12), ("other", 40))
    true = repeat(("crop", 10), ("other", 42))
    strata = repeat(("a", 12), *((f"b{k}", 2) for k in range(20)))
    found = []
    for rows in (np.s_[:16], np.s_[:]):
        own = mapped[rows], true[rows], strata[rows]
        sizes = dict.fromkeys(own[2].tolist(), 1e6)
        unit = unit_estimates(*own, sizes, {"crop": 1e4}, np.arange(len(own[0])) < 12, by_class=False)
        found.append(unit["classes"][0]["synthetic"])
    assert found[0] == pytest.approx(found[1])


@pytest.fixture
def districts(tmp_path):
    """A map of 120 x 300 pixels; its western third, the rest with a part off the map, and a district elsewhere."""
    rng = np.random.default_rng(0)
    truth = (rng.random((120, 300)) > 0.3).astype(int)
    mapped = np.where((truth == 1) & (rng.random(truth.shape) < 0.1), 0, truth)
    path = write_map(tmp_path / "map.tif", mapped)
    places = np.concatenate([rng.permutation(np.argwhere(mapped == k))[:150] for k in (0, 1)])
    labels = np.array(["crop", "other"])[truth[tuple(places.T)]]
    sample = write_sample(tmp_path / "s.csv", places, labels, path)
    shapes = [shapely.box(500_000, 98_800, 501_000, 100_000), shapely.box(501_000, 98_800, 507_000, 100_000),
              shapely.box(600_000, 0, 600_100, 100), shapely.box(500_000, 99_970, 500_030, 100_000)]  # fmt: skip
    wkb = pa.array([shapely.to_wkb(shape) for shape in shapes], pa.binary())
    table = pa.table({"geometry": wkb, "district": ["west", "east", "away", "corner"]})
    units = tmp_path / "units.gpkg"
    pyogrio.write_arrow(table, units, geometry_type="Polygon", crs="EPSG:32636", driver="GPKG", **GEOMETRY)
    return path, sample, units, mapped, truth


def test_districts_over_a_map(districts, tmp_path, capsys):
    path, sample, units, mapped, truth = districts
    arguments = ["area", str(path), "--labels", str(sample), "--units", str(units), "--unit-column", "district"]
    assert main([*arguments, "--out", str(tmp_path / "area.json")]) == 0
    found = {unit["unit"]: unit for unit in json.loads((tmp_path / "area.json").read_text())["units"]}
    text = capsys.readouterr().out
    for name, columns in (("west", slice(100)), ("east", slice(100, None))):
        crop = found[name]["classes"][0]
        assert crop["mapped_hectares"] == pytest.approx(np.sum(mapped[:, columns] == 0) / 100)
        for kind in ("direct_hectares", "synthetic_hectares"):
            assert crop[kind]["low"] < np.sum(truth[:, columns] == 0) / 100 < crop[kind]["high"]
    assert found["west"]["n"] + found["east"]["n"] == 300
    assert found["west"]["covered"] == pytest.approx(1) and found["east"]["covered"] == pytest.approx(1 / 3)
    assert found["corner"]["hectares"] == pytest.approx(0.09) and found["corner"]["classes"][0]["direct"] is None
    assert "east: the map has data for 33 % of it" in text
    assert "away: no direct or synthetic estimate: the map has no data in it" in text
    assert f"corner: no direct estimate: {found['corner']['n']} labelled places in it, 30 at least are needed" in text


def test_units_in_degrees_count_the_same_pixels(districts, tmp_path):
    path, sample, units, _, _ = districts
    metres = map_area(path, sample, units, "district")
    shapes = pyogrio.raw.read(units)[2]
    moved = transformed(shapely.from_wkb(shapes), CRS.from_epsg(32636), CRS.from_epsg(4326))
    features = [
        {"type": "Feature", "properties": {"id": str(k)}, "geometry": json.loads(shapely.to_geojson(shape))}
        for k, shape in enumerate(moved)
    ]
    (tmp_path / "u.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    degrees = map_area(path, sample, tmp_path / "u.geojson")
    for one, other in zip(metres["units"], degrees["units"], strict=True):
        assert one["hectares"] == pytest.approx(other["hectares"], rel=0.02) and one["n"] == other["n"]


def test_units_elsewhere_are_refused(districts, tmp_path, capsys):
    path, sample, units, _, _ = districts
    wkb = pa.array([shapely.to_wkb(shapely.box(0, 0, 1, 1))], pa.binary())
    pyogrio.write_arrow(pa.table({"geometry": wkb}), tmp_path / "far.gpkg",
                        geometry_type="Polygon", crs="EPSG:32636", driver="GPKG", **GEOMETRY)  # fmt: skip
    with pytest.raises(DataError, match="none of its 1 units has pixels of .*map.tif"):
        map_area(path, sample, tmp_path / "far.gpkg")
    assert main(["area", str(path), "--labels", str(sample), "--unit-column", "district"]) != 0
    assert "--unit-column and --crs tell of --units" in capsys.readouterr().err
