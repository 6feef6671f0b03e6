"""The verbs of `croplem` that work with labels: fit, map, evaluate and area."""

import argparse
import sys
from pathlib import Path

from .cli_parts import Answer, Verbs, load_embedder, seed_number, whole_number
from .errors import DataError
from .label_arguments import block_argument, labelled_table, region_argument, table_arguments


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers."""
    fit = verbs.add(
        "fit", _fit, "a small calibrated classifier, from labels",
        "Fit a small calibrated classifier to the labels of an embeddings table.",
        examples=["croplem fit patches.parquet --labels labels.csv cropland.head",
                  "croplem fit patches.parquet --labels next1.csv --labels next2.csv cropland.head --head boosting",
                  "croplem fit series.emb.parquet --where region=Sudan --label-column cropland cropland.head"],
        keys={"out": "folder", "head": "kind of classifier", "classes": "labels by class",
              "calibration": "as asked for", "calibrated": "whether there were labels enough for it",
              "temperature": "of the probabilities, null with another calibration"},
    )  # fmt: skip
    table_arguments(fit)
    block_argument(fit)
    fit.add_argument("out", type=Path, metavar="OUT", help="head folder to write")
    head_arguments(fit)
    fit.add_argument("--calibration", choices=("temperature", "isotonic", "none"), default="temperature",
                     help="of the probabilities, on held-out labels (default temperature)")  # fmt: skip
    fit.add_argument("--conformal", type=Path, metavar="LABELS", help="labels kept apart, for sets of classes")
    region_argument(fit)

    draw = verbs.add(
        "map", _map, "a map of a scene: classes, or embeddings",
        "Map a scene of any size into a Cloud-Optimised GeoTIFF: classes, or embeddings.",
        notes="A run that was cut off goes on where it stopped when the same command is given again; its finished "
        "tiles lie in OUT.tif.parts.",
        examples=["croplem map my_scene/ --head cropland.head map.tif",
                  "croplem map my_scene/ dense.tif --embeddings --bands 16"],
        keys={"out": "GeoTIFF", "height": "its rows", "width": "its columns", "bands": "how many",
              "classes": "names in the order of their numbers, null with --embeddings",
              "basis": "file of the components, null without --bands"},
    )  # fmt: skip
    draw.add_argument("scene", metavar="SCENE", type=Path, help="metadata.csv of its rasters, or its folder")
    draw.add_argument("out", metavar="OUT.tif", type=Path, help="map to write")
    what = draw.add_mutually_exclusive_group(required=True)
    what.add_argument("--head", type=Path, metavar="HEAD", help="classify with what `croplem fit` wrote")
    what.add_argument("--embeddings", action="store_true", help="write embeddings instead, a pixel for each token")
    draw.add_argument("--region", metavar="NAME", help="region of the scene, for heads that centre every region")
    draw.add_argument("--id", help="which place, where metadata.csv lists several")
    draw.add_argument("--model", help="checkpoint (default: the one that the head names, or the packaged one)")
    draw.add_argument("--device", help="cpu, cuda, ... (default: an accelerator where there is one)")
    draw.add_argument("--quiet", action="store_true", help="no progress bar")
    text = "pixels between windows, for heads on patches (default: a quarter of the patch)"
    draw.add_argument("--stride", type=whole_number, metavar="PIXELS", help=text)
    dense = draw.add_argument_group("with --embeddings")
    text = "principal components to keep, which go to OUT.basis.safetensors (default: all numbers)"
    dense.add_argument("--bands", type=whole_number, metavar="K", help=text)
    dense.add_argument("--basis", type=Path, metavar="FILE", help="components and scales of another map")
    dense.add_argument("--patch-size", type=whole_number, metavar="P", help="pixels a token (default 8)")
    dense.add_argument("--window", type=whole_number, metavar="PIXELS", help="side of a window (default: 4 tokens)")
    dense.add_argument("--sensors", choices=("s1", "s2"), help="use only this one")
    text = "int8 with a scale for each band (default), or float32"
    dense.add_argument("--precision", choices=("int8", "float32"), help=text)

    judge = verbs.add(
        "evaluate", _evaluate, "how good embeddings are, measured on labels",
        "Measure embeddings on labels: unseen regions, few labels, calibration.",
        examples=["croplem evaluate patches.parquet --labels labels.csv --out report",
                  "croplem evaluate patches.parquet --labels sample.csv --imagery SEN12MS/ --out report"],
        keys={"out": "folder", "report": "page to open", "figures": "JSON of all figures",
              "within": "auc and balanced_accuracy by region with local labels: region, n, and for both a value and "
              "the bounds low and high",
              "transfer": "the same of regions left out of training, null where there is one region",
              "within_mean": "of both scores: regions (how many have rows enough), mean over them, its low and high, "
              "worst and worst_region; null where there is none",
              "transfer_mean": "the same of regions left out, null where there is one region",
              "small_regions": "regions with too few rows to test for their figures to mean anything",
              "left_out": "what could not be measured, and why"},
    )  # fmt: skip
    table_arguments(judge)
    region_argument(judge)
    block_argument(judge)
    judge.add_argument("--out", type=Path, required=True, metavar="REPORT", help="folder of report, figures and tables")
    head_arguments(judge)
    judge.add_argument("--imagery", metavar="SRC", help="what was embedded: adds baselines from the imagery itself")
    judge.add_argument("--seeds", type=seed_number, default=5, help="replays of label buying, 0 for none (default 5)")
    judge.add_argument("--title", default="Evaluation of embeddings", help="heading of the report")
    judge.add_argument("--quiet", action="store_true", help="no progress bar")

    area = verbs.add(
        "area", _area, "areas of a map's classes, with their errors",
        "Areas of a map's classes with their errors, from a random sample of labelled places.",
        examples=["croplem area map.tif --labels sample.csv --out area.json",
                  "croplem area map.tif --labels sample.csv --units districts.gpkg --unit-column name"],
        keys={"n": "labels used", "strata": "what they were", "hectares": "of the whole map",
              "outside": "labels where the map has no data",
              "overall_accuracy": "an estimate: value, se (standard error), low and high of 95 %",
              "classes": "by class: estimates of area (share), hectares, users_accuracy and producers_accuracy; "
              "mapped_hectares counts pixels and is biased",
              "units": "with --units the same by unit, from the places in it (direct) and from the errors of the whole "
              "sample (synthetic); else null"},
    )  # fmt: skip
    area.add_argument("map", metavar="MAP.tif", type=Path, help="map that `croplem map` wrote")
    text = "lon, lat and label of random places that were not in training"
    area.add_argument("--labels", type=Path, required=True, metavar="SAMPLE.csv", help=text)
    text = "polygons such as districts, for which areas are estimated too (.gpkg, .geojson, .shp, .parquet)"
    area.add_argument("--units", type=Path, metavar="UNITS", help=text)
    area.add_argument("--unit-column", metavar="COLUMN", help="column of UNITS that names them (default: id)")
    area.add_argument("--crs", help="coordinate system of UNITS, where the file does not say")
    area.add_argument("--out", type=Path, metavar="AREA.json", help="write the figures too")


def head_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head", choices=("logistic", "knn", "mlp", "boosting"), default="logistic",
                        help="kind of classifier (default logistic)")  # fmt: skip
    parser.add_argument("--class-weight", choices=("balanced",), help="weigh classes alike; shifts the probabilities")
    parser.add_argument("--standardise-by", dest="centre_by", metavar="COLUMN",
                        help="centre every region on its own embeddings; maps then need --region")  # fmt: skip


def _fit(args: argparse.Namespace) -> Answer:
    import numpy as np

    from .heads import conformalise, fit_head
    from .labels import match_labels, read_labels

    table, y = labelled_table(args)
    sets = match_labels(table, read_labels(args.conformal)) if args.conformal else None
    if sets is not None:
        # What calibrates the sets must not be in training.
        y = np.where([label is not None for label in sets], None, y)
    head = fit_head(
        table, y, kind=args.head, block=args.block, centre_by=args.centre_by, class_weight=args.class_weight,
        calibration=args.calibration,
    )  # fmt: skip
    if sets is not None:
        known = args.region in table.metadata.column_names
        conformalise(head, table, sets, args.region if known else None)
    head.save(args.out)
    classes = dict(zip(head.classes_, head.n_labels_, strict=True))
    counts = ", ".join(f"{name} {count}" for name, count in classes.items())
    by_temperature = head.calibration == "temperature"
    calibrated = f"temperature {head.temperature_:.2f}" if by_temperature else head.calibration
    if not head.calibrated_ and head.calibration != "none":
        calibrated = "not calibrated: too few labels"
    facts = {
        "out": args.out, "head": args.head, "classes": classes, "calibration": head.calibration,
        "calibrated": head.calibrated_, "temperature": head.temperature_ if by_temperature else None,
    }  # fmt: skip
    return Answer(facts, f"{args.head} head of {len(classes)} classes ({counts}; {calibrated}) in {args.out}")


def _map(args: argparse.Namespace) -> Answer:
    import rasterio

    from .data import open_scene
    from .data.files import check_ending
    from .heads import load_head
    from .mapping import basis_path, map_embeddings, map_scene
    from .resolver import DEFAULT_CHECKPOINT

    check_ending(args.out, ".tif", ".tiff")
    dense = {key: getattr(args, key) for key in ("bands", "basis", "patch_size", "window", "sensors", "precision")}
    dense = {key: value for key, value in dense.items() if value is not None}
    strange = {"stride": args.stride} if args.embeddings else dense
    strange = [f"--{key.replace('_', '-')}" for key, value in strange.items() if value is not None]
    if strange:
        raise DataError(f"{', '.join(strange)} cannot go with {'--embeddings' if args.embeddings else '--head'}")
    head = None if args.embeddings else load_head(args.head)
    if head is None and args.region is not None:
        raise DataError("--region is for --head")
    if head is not None and head.regions_ is None and args.region is not None:
        raise DataError(f"{args.head}: does not centre every region on itself; leave --region out")
    if head is not None and head.regions_ is not None:
        if args.region is None:
            known = ", ".join(head.regions_.names_)
            raise DataError(f"{args.head}: centres every region on itself; give --region, one of {known}")
        head = head.for_region(args.region)
    scene = open_scene(args.scene, args.id)
    name = args.model or (head.info_.get("model") if head else None)
    embedder = load_embedder(None if name == DEFAULT_CHECKPOINT else name, args.device)
    if head:
        map_scene(scene, embedder, head, args.out, stride=args.stride, progress=not args.quiet)
    else:
        if "sensors" in dense:
            dense["sensors"] = [dense["sensors"]]
        map_embeddings(scene, embedder, args.out, **dense, progress=not args.quiet)
    with rasterio.open(args.out) as raster:
        facts = {"out": args.out, "height": raster.height, "width": raster.width, "bands": raster.count}
    classes = [str(label) for label in head.classes_] if head else None
    basis = basis_path(args.out) if args.bands else None
    if head:
        text = f"map of {scene.height} x {scene.width} pixels, classes {', '.join(classes)}, in {args.out}"
    else:
        text = f"embeddings of {facts['height']} x {facts['width']} tokens, {facts['bands']} bands, in {args.out}"
        text += f"\nmean and components in {basis}" if basis else ""
    return Answer(facts | {"classes": classes, "basis": basis}, text)


def _area(args: argparse.Namespace) -> Answer:
    from .data.files import check_ending
    from .evaluation.map_area import area_lines, map_area
    from .evaluation.report import write_json

    check_ending(args.out, ".json")
    if args.units is None and (args.unit_column or args.crs):
        raise DataError("--unit-column and --crs tell of --units; give that too")
    found = map_area(args.map, args.labels, args.units, args.unit_column, args.crs)
    if args.out:
        write_json(args.out, found)
    lines = [f"{found['n']} labels, strata: {found['strata']}", *area_lines(found)]
    return Answer({"units": None} | found, "\n".join(lines))


def _evaluate(args: argparse.Namespace) -> Answer:
    from functools import partial

    from .evaluation import evaluate
    from .evaluation.design import read_design
    from .evaluation.report import percent
    from .heads import HEADS

    if args.labels and len(args.labels) > 1:
        raise DataError("--labels: give one file, since its columns may say how the sample was drawn")
    table, y = labelled_table(args)
    figures = evaluate(
        table, y, args.out, title=args.title, region=args.region, block=args.block, seeds=args.seeds,
        make_head=partial(HEADS[args.head], class_weight=args.class_weight), centre_by=args.centre_by,
        design=read_design(args.labels[0], table.ids) if args.labels else None,
        baselines=_baselines(args.imagery, table.info) if args.imagery else None, progress=not args.quiet,
    )  # fmt: skip
    for part, text in figures["left_out"].items():
        print(f"left out: {part} ({text})", file=sys.stderr)
    report = args.out / "report.html"
    facts, lines = {"out": args.out, "report": report, "figures": args.out / "figures.json"}, []
    for part, name in {"within": "local labels", "transfer": "region left out"}.items():
        rows = figures[part]["regions"] if figures[part] else ()
        keys = ("region", "n", "auc", "balanced_accuracy")
        facts[part] = [{key: row[key] for key in keys} for row in rows] if figures[part] else None
        for row in rows:
            scores = "  ".join(f"{metric} {percent(row[metric])}" for metric in ("auc", "balanced_accuracy"))
            lines.append(f"{name:16} {row['region']:24} n {row['n']:<7} {scores}")
        means = _means(figures[part])
        facts[f"{part}_mean"] = means
        if means and max(value["regions"] for value in means.values()) > 1:
            scores = "  ".join(f"{metric} {percent(value)} of {value['regions']}" for metric, value in means.items())
            lines.append(f"{name:16} {'mean over regions':34} {scores}")
    lines.append(f"report in {report}; all figures in {facts['figures']}")
    facts |= {"small_regions": figures["data"]["small_regions"], "left_out": figures["left_out"]}
    return Answer(facts, "\n".join(lines))


def _means(account: dict | None) -> dict | None:
    """Mean and worst of both scores over regions, as `--json` tells them."""
    if account is None:
        return None
    keys = ("mean", "low", "high", "worst", "worst_region")
    spreads = {metric: account["spread"][metric] for metric in ("auc", "balanced_accuracy")}
    return {metric: {"regions": of["regions"]} | {key: of.get(key) for key in keys} for metric, of in spreads.items()}


def _baselines(imagery: str, info: dict):
    """A function that gives baselines of labelled ids, as `evaluate` takes it."""
    from .data import open_source
    from .evaluation.baselines import imagery_baselines
    from .resolver import DEFAULT_CHECKPOINT

    source, name = open_source(imagery), info.get("model")
    embedder = load_embedder(None if name == DEFAULT_CHECKPOINT else name, None)
    patch_size = info.get("patch_size")
    settings = {"sensors": info.get("sensors"), "patch_size": None if patch_size == "auto" else patch_size}
    return lambda ids: imagery_baselines(source, ids, embedder, settings)


__all__ = ["add_verbs"]
