"""The verbs of `croplem` that work with labels: suggest, fit, map, evaluate and area."""

import argparse
import sys
from pathlib import Path

SUGGEST_STRATEGIES = (
    "bandit", "stratified", "random", "margin", "entropy", "k-center", "typiclust", "badge", "cluster-margin",
    "uncertainty-herding", "dropquery",
)  # fmt: skip
"""Keys of `active.suggest.STRATEGIES`, whose module takes half a second to import."""


def add_verbs(verb) -> None:
    """Add the parsers; `verb(name, run, text)` makes one."""
    suggest = verb("suggest", _suggest, "Choose the next items to label, with reasons, into a CSV to fill in.")
    _table_arguments(suggest, labels_required=False)
    _region_argument(suggest)
    suggest.add_argument("-n", type=_count, default=50, help="how many (default 50)")
    text = "CSV to write; where the table has lon and lat, a GeoJSON is written beside it"
    suggest.add_argument("--out", type=Path, required=True, metavar="NEXT.csv", help=text)
    suggest.add_argument(
        "--strategy", choices=SUGGEST_STRATEGIES, default="bandit",
        help="bandit (default), random, stratified (random, regions alike), or one of the published ones to compare",
    )  # fmt: skip
    suggest.add_argument("--seed", type=seed_number, default=0, help="of all that is random (default 0)")
    suggest.add_argument("--state", type=Path, metavar="FILE", help="the bandit's memory; read if there, then written")
    text = "share of the bandit's items that is drawn at random, 0 to 1 (default: 0, or as before with --state)"
    suggest.add_argument("--explore", type=_number, metavar="SHARE", help=text)
    text = "leave out items that fit, such as places that cannot be visited; may be repeated"
    suggest.add_argument("--exclude", action="append", default=[], metavar="COLUMN=VALUE", help=text)
    text = "leave out the items of this file (column id); may be repeated"
    suggest.add_argument("--exclude-ids", action="append", default=[], type=Path, metavar="FILE.csv", help=text)
    text = "sheet of --validation: its items are neither chosen nor learned from; may be repeated"
    suggest.add_argument("--validation-sheet", action="append", default=[], type=Path, metavar="SHEET.csv", help=text)
    text = "draw N items at random to test with instead, with their inclusion probabilities"
    suggest.add_argument("--validation", type=_count, metavar="N", help=text)
    text = "strata of --validation: by region (default), or by the class that a head predicts from the labels"
    suggest.add_argument("--strata", choices=("region", "class"), default="region", help=text)
    suggest.add_argument("--cost", metavar="COLUMN", help="column of prices: most is covered for the money")
    text = "price of a kilometre between the places of a batch, so that they gather in trips (columns lon, lat)"
    suggest.add_argument("--per-km", type=_number, default=0.0, metavar="PRICE", help=text)
    suggest.add_argument("--budget", type=_number, metavar="MONEY", help="most that the batch may cost")
    text = "embeddings of the place to be predicted, where nothing can be labelled: covers that instead of EMBEDDINGS"
    suggest.add_argument("--target", type=Path, metavar="TARGET.parquet", help=text)
    suggest.add_argument("--picture", type=Path, metavar="PNG", help="draw a sheet of the items; needs --images")
    suggest.add_argument("--images", metavar="SRC", help="where the items come from, for --picture")

    fit = verb("fit", _fit, "Fit a small calibrated classifier to the labels of an embeddings table.")
    _table_arguments(fit)
    _block_argument(fit)
    fit.add_argument("out", type=Path, metavar="OUT", help="head folder to write")
    _head_arguments(fit)
    fit.add_argument("--calibration", choices=("temperature", "isotonic", "none"), default="temperature",
                     help="of the probabilities, on held-out labels (default temperature)")  # fmt: skip
    fit.add_argument("--conformal", type=Path, metavar="LABELS", help="labels kept apart, for sets of classes")
    _region_argument(fit)

    draw = verb(
        "map", _map, "Map a scene of any size into a Cloud-Optimised GeoTIFF: classes, or embeddings.",
        epilog="A run that was cut off goes on where it stopped when the same command is given again; its finished "
        "tiles lie in OUT.tif.parts.",
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
    draw.add_argument("--stride", type=_count, metavar="PIXELS", help=text)
    dense = draw.add_argument_group("with --embeddings")
    text = "principal components to keep, which go to OUT.basis.safetensors (default: all numbers)"
    dense.add_argument("--bands", type=_count, metavar="K", help=text)
    dense.add_argument("--basis", type=Path, metavar="FILE", help="components and scales of another map")
    dense.add_argument("--patch-size", type=_count, metavar="P", help="pixels a token (default 8)")
    dense.add_argument("--window", type=_count, metavar="PIXELS", help="side of a window (default: 4 tokens)")
    dense.add_argument("--sensors", choices=("s1", "s2"), help="use only this one")
    text = "int8 with a scale for each band (default), or float32"
    dense.add_argument("--precision", choices=("int8", "float32"), help=text)

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
    text = "polygons such as districts, for which areas are estimated too (.gpkg, .geojson, .shp, .parquet)"
    area.add_argument("--units", type=Path, metavar="UNITS", help=text)
    area.add_argument("--unit-column", metavar="COLUMN", help="column of UNITS that names them (default: id)")
    area.add_argument("--crs", help="coordinate system of UNITS, where the file does not say")
    area.add_argument("--out", type=Path, metavar="AREA.json", help="write the figures too")


def _table_arguments(parser: argparse.ArgumentParser, labels_required: bool = True) -> None:
    parser.add_argument("embeddings", metavar="EMBEDDINGS", type=Path, help="embeddings table (.parquet)")
    group = parser.add_mutually_exclusive_group(required=labels_required)
    text = "CSV or Parquet with columns id and label, such as a filled sheet; may be repeated"
    group.add_argument("--labels", type=Path, action="append", metavar="LABELS", help=text)
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


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _labelled_table(args: argparse.Namespace):
    """-> the rows of the table that are asked for, and their labels."""
    from .labels import column_labels, match_labels, read_label_files, select_where
    from .table import read_table

    table = select_where(read_table(args.embeddings), args.where)
    if args.label_column:
        return table, column_labels(table, args.label_column)
    return table, match_labels(table, read_label_files(args.labels or ()))


def _suggest(args: argparse.Namespace) -> None:
    from .active.suggest import draw_validation, suggest
    from .data.files import check_ending
    from .errors import DataError
    from .labels import rows_where
    from .table import read_table

    check_ending(args.picture, ".png")
    if args.picture and not args.images:
        raise DataError("--picture needs --images SRC: the table holds no images")
    steered = args.cost is not None or args.per_km or args.budget is not None or args.explore is not None
    if args.validation and (args.state or steered or args.target or args.strategy != "bandit"):
        raise DataError("--validation is a random sample: what steers a choice does not go with it")
    table, y = _labelled_table(args)
    kept = _ids_of(args.validation_sheet, table)
    y[[name in kept for name in table.ids]] = None
    excluded = kept | _ids_of(args.exclude_ids, table)
    excluded |= {table.ids[row] for text in args.exclude for row in rows_where(table, [text])}
    if args.validation:
        picks = draw_validation(
            table, y, args.validation, strata=args.strata, region=args.region, seed=args.seed, exclude=excluded,
            out=args.out,
        )  # fmt: skip
    else:
        picks = suggest(
            table, y, args.n, strategy=args.strategy, region=args.region, seed=args.seed, exclude=excluded,
            explore=args.explore, cost=args.cost, per_km=args.per_km, budget=args.budget, state=args.state,
            target=read_table(args.target) if args.target else None, out=args.out,
        )  # fmt: skip
    known = sum(label is not None for label in y)
    what = "to validate with" if args.validation else "to label next"
    print(f"{len(picks)} of {len(table)} items {what} ({known} are labelled) in {args.out}")
    if args.picture:
        from .data import open_source
        from .pictures import draw_items

        captions = [f"{pick['rank']}  {pick['id']}\n{_short_reason(pick)}" for pick in picks]
        draw_items(open_source(args.images), [pick["id"] for pick in picks], captions, args.picture)
        print(f"picture in {args.picture}", file=sys.stderr)


def _ids_of(paths: list[Path], table) -> set[str]:
    """Ids of the table that the files name; a file of another table is refused."""
    from .errors import DataError
    from .labels import read_ids

    own, found = set(table.ids), set()
    for path in paths:
        ids = read_ids(path)
        if not own.intersection(ids):
            raise DataError(f"{path}: none of its ids is in the table: they look like {ids[0]!r}, not {table.ids[0]!r}")
        found |= own.intersection(ids)
    return found


def _short_reason(pick: dict) -> str:
    if "stratum" in pick:
        return f"{pick['stratum']}, 1 of {1 / pick['inclusion_probability']:.0f}"
    return pick["reason"].split(";")[0].split(",")[0] if "reason" in pick else str(pick.get("region") or "")


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
    import rasterio

    from .cli import load_embedder
    from .data import open_scene
    from .errors import DataError
    from .heads import load_head
    from .mapping import basis_path, map_embeddings, map_scene
    from .resolver import DEFAULT_CHECKPOINT

    dense = {key: getattr(args, key) for key in ("bands", "basis", "patch_size", "window", "sensors", "precision")}
    dense = {key: value for key, value in dense.items() if value is not None}
    strange = {"stride": args.stride} if args.embeddings else dense
    strange = [f"--{key.replace('_', '-')}" for key, value in strange.items() if value is not None]
    if strange:
        raise DataError(f"{', '.join(strange)} cannot go with {'--embeddings' if args.embeddings else '--head'}")
    head = None if args.embeddings else load_head(args.head)
    if head is None and args.region is not None:
        raise DataError("--region is for --head")
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
        print(
            f"map of {scene.height} x {scene.width} pixels, classes {', '.join(map(str, head.classes_))}, in {args.out}"
        )
        return
    if "sensors" in dense:
        dense["sensors"] = [dense["sensors"]]
    map_embeddings(scene, embedder, args.out, **dense, progress=not args.quiet)
    with rasterio.open(args.out) as raster:
        print(f"embeddings of {raster.height} x {raster.width} tokens, {raster.count} bands, in {args.out}")
    if args.bands:
        print(f"mean and components in {basis_path(args.out)}")


def _area(args: argparse.Namespace) -> None:
    from .data.files import check_ending
    from .errors import DataError
    from .evaluation.map_area import area_lines, map_area
    from .evaluation.report import write_json

    check_ending(args.out, ".json")
    if args.units is None and (args.unit_column or args.crs):
        raise DataError("--unit-column and --crs tell of --units; give that too")
    found = map_area(args.map, args.labels, args.units, args.unit_column, args.crs)
    if args.out:
        write_json(args.out, found)
    print(f"{found['n']} labels, strata: {found['strata']}")
    print("\n".join(area_lines(found)))


def _evaluate(args: argparse.Namespace) -> None:
    from functools import partial

    from .errors import DataError
    from .evaluation import evaluate
    from .evaluation.design import read_design
    from .evaluation.report import percent
    from .heads import HEADS

    if args.labels and len(args.labels) > 1:
        raise DataError("--labels: give one file, since its columns may say how the sample was drawn")
    table, y = _labelled_table(args)
    figures = evaluate(
        table, y, args.out, title=args.title, region=args.region, block=args.block, seeds=args.seeds,
        make_head=partial(HEADS[args.head], class_weight=args.class_weight), centre_by=args.centre_by,
        design=read_design(args.labels[0], table.ids) if args.labels else None,
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
