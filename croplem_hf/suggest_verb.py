"""The verb `suggest` of `croplem`: what to label next."""

import argparse
import sys
from pathlib import Path

from .cli_parts import Answer, Verbs, number, seed_number, share, whole_number
from .errors import DataError
from .label_arguments import labelled_table, region_argument, table_arguments

SUGGEST_STRATEGIES = (
    "bandit", "stratified", "random", "margin", "entropy", "k-center", "typiclust", "badge", "cluster-margin",
    "uncertainty-herding", "dropquery",
)  # fmt: skip
"""Keys of `active.suggest.STRATEGIES`, whose module takes half a second to import."""


def add_verb(verbs: Verbs) -> None:
    """Add the parser."""
    suggest = verbs.add(
        "suggest", _suggest, "what to label next, with reasons",
        "Choose the next items to label, with reasons, into a CSV to fill in.",
        notes="With --state FILE the items of earlier sheets are not offered again while they wait for their labels. A "
        "sheet that will never come back is released by --forget SHEET.csv.",
        examples=["croplem suggest patches.parquet -n 50 --state campaign.state --out next1.csv",
                  "croplem suggest patches.parquet --labels next1.csv --state campaign.state --out next2.csv",
                  "croplem suggest patches.parquet --state campaign.state --forget next2.csv --out next3.csv",
                  "croplem suggest patches.parquet --target there.parquet --out next.csv",
                  "croplem suggest patches.parquet --validation 200 --out sample.csv"],
        keys={"out": "sheet", "map": "GeoJSON beside it, or null", "picture": "sheet of pictures, or null",
              "rows": "of the table", "labelled": "how many of them have a label",
              "waiting": "items in --state that have no label yet, those of this sheet among them; null without it",
              "picks": "the items in order, each with what the sheet says of it"},
    )  # fmt: skip
    table_arguments(suggest, labels_required=False)
    region_argument(suggest)
    suggest.add_argument("-n", type=whole_number, default=50, help="how many (default 50)")
    text = "CSV to write; where the table has lon and lat, a GeoJSON is written beside it"
    suggest.add_argument("--out", type=Path, required=True, metavar="NEXT.csv", help=text)
    suggest.add_argument(
        "--strategy", choices=SUGGEST_STRATEGIES, default="bandit",
        help="bandit (default), random, stratified (random, regions alike), or one of the published ones to compare",
    )  # fmt: skip
    suggest.add_argument("--seed", type=seed_number, default=0, help="of all that is random (default 0)")
    suggest.add_argument("--state", type=Path, metavar="FILE", help="the bandit's memory; read if there, then written")
    text = "release the items of a sheet that was lost, so that they can be chosen again; may be repeated"
    suggest.add_argument("--forget", action="append", default=[], type=Path, metavar="SHEET.csv", help=text)
    text = "share of the bandit's items that is drawn at random, 0 to 1 (default: 0, or as before with --state)"
    suggest.add_argument("--explore", type=share, metavar="SHARE", help=text)
    text = "leave out items that fit, such as places that cannot be visited; may be repeated"
    suggest.add_argument("--exclude", action="append", default=[], metavar="COLUMN=VALUE", help=text)
    text = "leave out the items of this file (column id); may be repeated"
    suggest.add_argument("--exclude-ids", action="append", default=[], type=Path, metavar="FILE.csv", help=text)
    text = "sheet of --validation: its items are neither chosen nor learned from; may be repeated"
    suggest.add_argument("--validation-sheet", action="append", default=[], type=Path, metavar="SHEET.csv", help=text)
    text = "draw N items at random to test with instead, with their inclusion probabilities"
    suggest.add_argument("--validation", type=whole_number, metavar="N", help=text)
    text = "strata of --validation: by region (default), or by the class that a head predicts from the labels"
    suggest.add_argument("--strata", choices=("region", "class"), default="region", help=text)
    suggest.add_argument("--cost", metavar="COLUMN", help="column of prices: most is covered for the money")
    text = "price of a kilometre between the places of a batch, so that they gather in trips (columns lon, lat)"
    suggest.add_argument("--per-km", type=number, default=0.0, metavar="PRICE", help=text)
    suggest.add_argument("--budget", type=number, metavar="MONEY", help="most that the batch may cost")
    text = "embeddings of the place to be predicted, where nothing can be labelled: covers that instead of EMBEDDINGS"
    suggest.add_argument("--target", type=Path, metavar="TARGET.parquet", help=text)
    suggest.add_argument("--picture", type=Path, metavar="PNG", help="draw a sheet of the items; needs --images")
    suggest.add_argument("--images", metavar="SRC", help="where the items come from, for --picture")


def _suggest(args: argparse.Namespace) -> Answer:
    from .active.suggest import draw_validation, suggest
    from .data.files import check_ending
    from .labels import rows_where
    from .table import read_table

    check_ending(args.picture, ".png")
    if args.picture and not args.images:
        raise DataError("--picture needs --images SRC: the table holds no images")
    if args.forget and not args.state:
        raise DataError("--forget needs --state FILE, which remembers what the sheet held")
    steered = args.cost is not None or args.per_km or args.budget is not None or args.explore is not None
    if args.validation and (args.state or steered or args.target or args.strategy != "bandit"):
        raise DataError("--validation is a random sample: what steers a choice does not go with it")
    table, y = labelled_table(args)
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
            forget=_ids_of(args.forget, table), target=read_table(args.target) if args.target else None, out=args.out,
        )  # fmt: skip
    if args.picture:
        _draw(args, picks)
    return _answer(args, table, y, picks)


def _draw(args: argparse.Namespace, picks: list[dict]) -> None:
    from .data import open_source
    from .pictures import draw_items

    captions = [f"{pick['rank']}  {pick['id']}\n{_short_reason(pick)}" for pick in picks]
    draw_items(open_source(args.images), [pick["id"] for pick in picks], captions, args.picture)
    print(f"picture in {args.picture}", file=sys.stderr)


def _answer(args: argparse.Namespace, table, y, picks: list[dict]) -> Answer:
    from .active import CoverageBandit

    known = sum(label is not None for label in y)
    points = args.out.with_suffix(".geojson")
    facts = {
        "out": args.out, "map": points if points.exists() else None, "picture": args.picture, "rows": len(table),
        "labelled": known, "waiting": len(CoverageBandit.load(args.state).pending_) if args.state else None,
        "picks": picks,
    }  # fmt: skip
    what = "to validate with" if args.validation else "to label next"
    return Answer(facts, f"{len(picks)} of {len(table)} items {what} ({known} are labelled) in {args.out}")


def _ids_of(paths: list[Path], table) -> set[str]:
    """Ids of the table that the files name; a file of another table is refused."""
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


__all__ = ["SUGGEST_STRATEGIES", "add_verb"]
