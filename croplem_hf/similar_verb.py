"""The verb `similar` of `croplem`: what is most like an item, a place, a field or an image."""

import argparse
import math
import sys
from pathlib import Path

from .cli_parts import Answer, Verbs, load_embedder
from .errors import DataError


def add_verb(verbs: Verbs) -> None:
    """Add the parser."""
    similar = verbs.add(
        "similar", run, "what is most like an item, a place, a field or an image",
        "Find what is most like an item of an index, what lies at a place, a field, or an image.",
        notes="Fields and images are embedded with the model and settings of the index; a unit that it does not hold "
        "is refused.",
        examples=["croplem similar patches.index --id ROIs1158_spring_1_p30 --images SEN12MS/ --picture similar.png",
                  "croplem similar fields.index --lonlat 35.41,-0.45 -k 20 --where region=Kenya",
                  "croplem similar fields.index --field one.geojson --scene my_scene/",
                  "croplem similar patches.index --image new_place/"],
        keys={"neighbours": "the most alike first: query, rank, id, score (cosine) and the columns of the index",
              "near": "with --lonlat the items there, each an id and metres; else null",
              "picture": "as asked for, or null"},
    )  # fmt: skip
    similar.add_argument("index", metavar="INDEX", type=Path, help="folder that `croplem index` wrote")
    start = similar.add_mutually_exclusive_group(required=True)
    start.add_argument("--id", action="append", help="item of the index to start from; may be given several times")
    start.add_argument("--lonlat", type=_place, metavar="LON,LAT", help="the indexed item nearest to a place (degrees)")
    start.add_argument("--field", type=Path, metavar="FIELDS.geojson", help="fields of --scene, for an index of fields")
    start.add_argument("--image", metavar="SRC", help="new images or series, in any layout that `embed` takes")
    text = "refuse --lonlat where nothing lies so near (default 1000; any for no limit)"
    similar.add_argument("--within", type=_metres, default=1000.0, metavar="METRES", help=text)
    similar.add_argument("--scene", type=Path, help="metadata.csv of the rasters under --field, or its folder")
    similar.add_argument("--place", metavar="ID", help="which place of --scene or --images, where it lists several")
    similar.add_argument("--crs", help="of --field and --outlines, where the file does not say")
    similar.add_argument("--id-column", metavar="COLUMN", help="names the fields of --field and --outlines")
    similar.add_argument("--item", action="append", metavar="ID", help="only this of --field or --image; repeatable")
    similar.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE",
                         help="only among items that fit, compared exactly; may be repeated")  # fmt: skip
    similar.add_argument("-k", type=int, default=10, help="how many neighbours (default 10)")
    similar.add_argument("--picture", type=Path, metavar="PNG", help="draw a sheet of the items; needs --images")
    similar.add_argument("--images", metavar="SRC", help="where the items of the index come from, for --picture")
    similar.add_argument("--outlines", type=Path, metavar="FIELDS", help="the polygons of an index of fields over "
                         "--images, for --picture")  # fmt: skip
    similar.add_argument("--model", help="checkpoint for --field and --image (default: the one that the index names)")
    similar.add_argument("--device", help="cpu, cuda, ... (default: an accelerator where there is one)")


def with_place(argv: list[str]) -> list[str]:
    """`--lonlat -59.1,-12.3` as one argument, since argparse takes what begins with a minus for an option."""
    if "--lonlat" in argv[:-1]:
        at = argv.index("--lonlat")
        argv = [*argv[:at], f"--lonlat={argv[at + 1]}", *argv[at + 2 :]]
    return argv


def _place(text: str) -> tuple[float, float]:
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LON,LAT such as 35.41,-0.45") from None
    return lon, lat


def _metres(text: str) -> float:
    try:
        metres = math.inf if text == "any" else float(text)
    except ValueError:
        metres = math.nan
    if not metres >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not metres, or any")
    return metres


def run(args: argparse.Namespace) -> Answer:
    from .index import EmbeddingIndex

    _check(args)
    index = EmbeddingIndex.load(args.index)
    where: dict[str, list[str]] = {}
    for text in args.where:
        column, equal, value = text.partition("=")
        if not equal:
            raise DataError(f"--where must be COLUMN=VALUE, such as region=Kenya; found {text!r}")
        where.setdefault(column, []).append(value)
    source = near = None
    if args.id:
        names = args.id
        found = index.query(ids=names, k=args.k, where=where or None)
    elif args.lonlat:
        from .similar import nearest_items

        near = nearest_items(index, *args.lonlat, within=args.within)
        for name, metres in near:
            print(f"{name} lies {metres:.0f} m from {args.lonlat[0]:g},{args.lonlat[1]:g}", file=sys.stderr)
        names = [name for name, _ in near]
        found = index.query(ids=names, k=args.k, where=where or None)
    else:
        source, names, vectors, about = _embedded(args, index)
        found = index.query(vectors, k=args.k, where=where or None)
    if args.picture:
        new = [] if source is None else [(source, *item) for item in zip(names, about, strict=True)]
        _draw(args, index, found, new or names)
    rows = _rows(found, names)
    near = near and [{"id": name, "metres": metres} for name, metres in near]
    return Answer({"neighbours": rows, "near": near, "picture": args.picture}, _table(index, rows))


def _check(args: argparse.Namespace) -> None:
    from .data.files import check_ending

    check_ending(args.picture, ".png")
    if args.picture and not args.images:
        raise DataError("--picture needs --images SRC: the index holds no images")
    if args.field and not args.scene:
        raise DataError("--field needs --scene, the imagery that the field lies in")
    for name, needs in (("scene", "field"), ("outlines", "picture")):
        if getattr(args, name) and not getattr(args, needs):
            raise DataError(f"--{name} is for --{needs}")
    if args.item and not (args.field or args.image):
        raise DataError("--item is for --field and --image; name items of the index by --id")


def _embedded(args: argparse.Namespace, index) -> tuple:
    """Source, ids, vectors and metadata of the fields or images to look for."""
    from .resolver import DEFAULT_CHECKPOINT
    from .similar import check_unit, embed_queries, field_options, settings_of

    if args.field:
        check_unit(index, "field")
        from .data import open_scene
        from .data.polygons import read_polygons
        from .data.scene_fields import SceneFields

        polygons = read_polygons(args.field, id_column=args.id_column, crs=args.crs)
        source = SceneFields(open_scene(args.scene, args.place), polygons, **field_options(index))
    else:
        from .data import open_source

        source = open_source(args.image, sensors=settings_of(index)["sensors"])
        check_unit(index, source.unit)
    settings_of(index)
    model = args.model or index.info.get("model")
    embedder = load_embedder(None if model == DEFAULT_CHECKPOINT else model, args.device)
    return source, *embed_queries(index, embedder, source, args.item)


def _draw(args: argparse.Namespace, index, found, queries: list) -> None:
    from .data import open_scene, open_source
    from .pictures import draw_similar, show

    if args.outlines:
        from .data.polygons import read_polygons
        from .data.scene_fields import SceneFields

        polygons = read_polygons(args.outlines, id_column=args.id_column, crs=args.crs)
        shrink = index.info.get("shrink_m", 0.0)
        source = SceneFields(open_scene(args.images, args.place), polygons, shrink=shrink)
    elif index.info.get("unit") == "field" and "shrink_m" in index.info:
        raise DataError("--picture of an index of fields needs --images SCENE and --outlines, the file of its polygons")
    else:
        source = open_source(args.images)
    shown = [query if isinstance(query, str) else show(*query) for query in queries]
    draw_similar(source, shown, found, args.picture)
    print(f"picture in {args.picture}", file=sys.stderr)


def _rows(found, names: list[str]) -> list[dict]:
    metadata = iter(found.metadata.to_pylist())
    return [
        next(metadata) | {"query": query, "rank": rank, "score": round(float(score), 4)}
        for query, scores in zip(names, found.scores, strict=True)
        for rank, score in enumerate(scores, 1)
    ]


def _table(index, rows: list[dict]) -> str:
    columns = ["query", "rank", "id", "score", "region", "lon", "lat"]
    columns += [name for name in ("area_ha", "valid_share") if name in index.metadata.column_names]
    cells = [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in (columns, *cells)
    )


def _cell(value) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
