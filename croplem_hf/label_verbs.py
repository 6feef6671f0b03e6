"""The verbs of `croplem` that work with labels: suggest, fit, map, evaluate and area."""

import argparse
import sys
from pathlib import Path


def add_verbs(verb) -> None:
    """Add the parsers; `verb(name, run, text)` makes one."""
    suggest = verb("suggest", _suggest, "Choose the next items to label, with reasons, into a CSV to fill in.")
    _table_arguments(suggest, labels_required=False)
    _region_argument(suggest)
    suggest.add_argument("-n", type=_count, default=50, help="how many (default 50)")
    suggest.add_argument("--out", type=Path, required=True, metavar="NEXT.csv", help="CSV to write")
    suggest.add_argument(
        "--strategy", choices=("bandit", "stratified", "random", "margin"), default="bandit",
        help="bandit (default) for a pool that is to be mapped itself; random or stratified for what gets no labels",
    )  # fmt: skip
    suggest.add_argument("--seed", type=seed_number, default=0, help="of all that is random (default 0)")
    suggest.add_argument("--state", type=Path, metavar="FILE", help="the bandit's memory; read if there, then written")

    fit = verb("fit", _fit, "Fit a small calibrated classifier to the labels of an embeddings table.")
    _table_arguments(fit)
    _block_argument(fit)
    fit.add_argument("out", type=Path, metavar="OUT", help="head folder to write")
    _head_arguments(fit)
    fit.add_argument("--calibration", choices=("temperature", "isotonic", "none"), default="temperature",
                     help="of the probabilities, on held-out labels (default temperature)")  # fmt: skip
    fit.add_argument("--conformal", type=Path, metavar="LABELS", help="labels kept apart, for sets of classes")
    _region_argument(fit)

    draw = verb("map", _map, "Classify a scene into a GeoTIFF on its own grid: class and probabilities.")
    draw.add_argument("scene", metavar="SCENE", type=Path, help="metadata.csv of its rasters, or its folder")
    draw.add_argument("out", metavar="OUT.tif", type=Path, help="map to write")
    draw.add_argument("--head", type=Path, required=True, metavar="HEAD", help="folder that `croplem fit` wrote")
    draw.add_argument("--region", metavar="NAME", help="region of the scene, for heads that centre every region")
    draw.add_argument("--id", help="which place, where metadata.csv lists several")
    draw.add_argument("--stride", type=_count, metavar="PIXELS", help="side of a cell, for heads on patches")
    draw.add_argument("--model", help="checkpoint of the head's embeddings (default: the one that the head names)")
    draw.add_argument("--device", help="cpu, cuda, ... (default: an accelerator where there is one)")
    draw.add_argument("--quiet", action="store_true", help="no progress bar")

    judge = verb("evaluate", _evaluate, "Measure embeddings on labels: unseen regions, few labels, calibration.")
    _table_arguments(judge)
    _region_argument(judge)
    _block_argument(judge)
    judge.add_argument("--out", type=Path, required=True, metavar="REPORT", help="folder of report, figures and tables")
    _head_arguments(judge)
    judge.add_argument("--imagery", metavar="SRC", help="what was embedded: adds baselines from the imagery itself")
    judge.add_argument("--seeds", type=int, default=5, help="replays of label buying, 0 for none (default 5)")
    judge.add_argument("--title", default="Evaluation of embeddings", help="heading of the report")
    judge.add_argument("--quiet", action="store_true", help="no progress bar")


    area = verb("area", _area, "Areas of a map's classes with their errors, from a random sample of labelled places.")
    area.add_argument("map", metavar="MAP.tif", type=Path, help="map that `croplem map` wrote")
    text = "lon, lat and label of random places that were not in training"
    area.add_argument("--labels", type=Path, required=True, metavar="SAMPLE.csv", help=text)
    area.add_argument("--out", type=Path, metavar="AREA.json", help="write the figures too")


def _table_arguments(parser: argparse.ArgumentParser, labels_required: bool = True) -> None:
    parser.add_argument("embeddings", metavar="EMBEDDINGS", type=Path, help="embeddings table (.parquet)")
    group = parser.add_mutually_exclusive_group(required=labels_required)
    group.add_argument("--labels", type=Path, metavar="LABELS", help="CSV or Parquet with columns id and label")
    group.add_argument("--label-column", metavar="COLUMN", help="take labels from this column of EMBEDDINGS instead")
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="only rows that fit; may be repeated"
    )


def _head_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head", choices=("logistic", "knn", "mlp", "boosting"), default="logistic",
                        help="kind of classifier (default logistic)")  # fmt: skip
    parser.add_argument("--class-weight", choices=("balanced",), help="weigh classes alike; shifts the probabilities")
    parser.add_argument("--standardise-by", dest="centre_by", metavar="COLUMN",
                        help="centre every region on its own embeddings; maps then need --region")  # fmt: skip


def _region_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--region", default="region", metavar="COLUMN", help="column of regions (default: region)")


def _block_argument(parser: argparse.ArgumentParser) -> None:
    text = "column of spatial blocks, which are never split (default: block)"
    parser.add_argument("--block", default="block", metavar="COLUMN", help=text)


def seed_number(text: str) -> int:
    """A seed on the command line."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _labelled_table(args: argparse.Namespace):
    """-> the rows of the table that are asked for, and their labels."""
    from .labels import column_labels, match_labels, read_labels, select_where
    from .table import read_table

    table = select_where(read_table(args.embeddings), args.where)
    if args.label_column:
        return table, column_labels(table, args.label_column)
    return table, match_labels(table, read_labels(args.labels) if args.labels else {})


def _suggest(args: argparse.Namespace) -> None:
    from .active.suggest import suggest

    table, y = _labelled_table(args)
    picks = suggest(
        table, y, args.n, strategy=args.strategy, region=args.region, seed=args.seed, state=args.state, out=args.out
    )  # fmt: skip
    known = sum(label is not None for label in y)
    print(f"{len(picks)} of {len(table)} items to label next ({known} are labelled) in {args.out}")


def _fit(args: argparse.Namespace) -> None:
    import numpy as np

    from .heads import conformalise, fit_head
    from .labels import match_labels, read_labels

    table, y = _labelled_table(args)
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
    counts = ", ".join(f"{name} {count}" for name, count in zip(head.classes_, head.n_labels_, strict=True))
    calibrated = f"temperature {head.temperature_:.2f}" if head.calibration == "temperature" else head.calibration
    if not head.calibrated_ and head.calibration != "none":
        calibrated = "not calibrated: too few labels"
    print(f"{args.head} head of {len(head.classes_)} classes ({counts}; {calibrated}) in {args.out}")


def _map(args: argparse.Namespace) -> None:
    from .cli import load_embedder
    from .data import open_scene
    from .errors import DataError
    from .heads import load_head
    from .mapping import map_scene
    from .resolver import DEFAULT_CHECKPOINT

    head = load_head(args.head)
    if head.regions_ is not None:
        if args.region is None:
            known = ", ".join(head.regions_.names_)
            raise DataError(f"{args.head}: centres every region on itself; give --region, one of {known}")
        head = head.for_region(args.region)
    scene = open_scene(args.scene, args.id)
    name = args.model or head.info_.get("model")
    embedder = load_embedder(None if name == DEFAULT_CHECKPOINT else name, args.device)
    map_scene(scene, embedder, head, args.out, stride=args.stride, progress=not args.quiet)
    print(f"map of {scene.height} x {scene.width} pixels, classes {', '.join(map(str, head.classes_))}, in {args.out}")


def _area(args: argparse.Namespace) -> None:
    from .evaluation.map_area import area_lines, map_area
    from .evaluation.report import write_json

    found = map_area(args.map, args.labels)
    if args.out:
        write_json(args.out, found)
    print(f"{found['n']} labels, strata: {found['strata']}")
    print("\n".join(area_lines(found)))


def _evaluate(args: argparse.Namespace) -> None:
    from functools import partial

    from .evaluation import evaluate
    from .evaluation.design import read_design
    from .evaluation.report import percent
    from .heads import HEADS

    table, y = _labelled_table(args)
    figures = evaluate(
        table, y, args.out, title=args.title, region=args.region, block=args.block, seeds=args.seeds,
        make_head=partial(HEADS[args.head], class_weight=args.class_weight), centre_by=args.centre_by,
        design=read_design(args.labels, table.ids) if args.labels else None,
        baselines=_baselines(args.imagery, table.info) if args.imagery else None, progress=not args.quiet,
    )  # fmt: skip
    for part, text in figures["left_out"].items():
        print(f"left out: {part} ({text})", file=sys.stderr)
    names = {"within": "local labels", "transfer": "region left out"}
    for part, name in names.items():
        for row in figures[part]["regions"] if figures[part] else ():
            scores = "  ".join(f"{metric} {percent(row[metric])}" for metric in ("auc", "balanced_accuracy"))
            print(f"{name:16} {row['region']:24} n {row['n']:<7} {scores}")
    print(f"report in {args.out / 'report.html'}; all figures in {args.out / 'figures.json'}")


def _baselines(imagery: str, info: dict):
    """A function that gives baselines of labelled ids, as `evaluate` takes it."""
    from .cli import load_embedder
    from .data import open_source
    from .evaluation.baselines import imagery_baselines
    from .resolver import DEFAULT_CHECKPOINT

    source, name = open_source(imagery), info.get("model")
    embedder = load_embedder(None if name == DEFAULT_CHECKPOINT else name, None)
    patch_size = info.get("patch_size")
    settings = {"sensors": info.get("sensors"), "patch_size": None if patch_size == "auto" else patch_size}
    return lambda ids: imagery_baselines(source, ids, embedder, settings)


__all__ = ["add_verbs", "seed_number"]
