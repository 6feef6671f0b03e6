"""The verbs of `croplem` that turn imagery into embeddings, and those into an index: embed and index."""

import argparse
import logging
import os
from pathlib import Path

from .cli_parts import Answer, Verbs, load_embedder, whole_number
from .errors import DataError

_RANKS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers."""
    embed = verbs.add(
        "embed", _embed, "embeddings of imagery, as a Parquet table",
        "Embed every patch, series or field of SRC into the Parquet table OUT.",
        notes="A run that was cut off goes on where it stopped when the same command is given again. A table of the "
        "same source that already lies at OUT is made anew and replaced; one of another source is refused. Items that "
        "cannot be read are listed in OUT.skipped.csv. `accelerate launch scripts/embed.py SRC OUT`, or torchrun, "
        "shares the work among processes.",
        examples=["croplem embed SEN12MS/ patches.parquet",
                  "croplem embed series.parquet series.emb.parquet --precision int8",
                  "croplem embed my_scene/ fields.parquet --fields fields.gpkg --id-column name"],
        keys={"out": "table", "rows": "embeddings in it", "dim": "numbers of an embedding",
              "skipped": "items that could not be embedded", "skipped_list": "CSV that lists them, or null"},
    )  # fmt: skip
    text = "a SEN12MS tree, shards or a dataset of the Hub, a series table (.parquet), or a metadata.csv"
    embed.add_argument("src", metavar="SRC", help=text)
    embed.add_argument("out", metavar="OUT", type=Path, help="embeddings table to write (.parquet)")
    embed.add_argument("--model", help="checkpoint name or folder (default: the packaged croplem/mae-s1s2)")
    embed.add_argument("--sensors", type=_sensors, help="use only these: s1, s2 or s1,s2")
    embed.add_argument("--patch-size", type=_patch_size, metavar="P", help="1 to 16 pixels (default: by image size)")
    embed.add_argument("--device", help="cpu, cuda, ... (default: an accelerator where there is one)")
    embed.add_argument("--no-centre", action="store_true", help="keep the mean embedding of the pretraining data in")
    embed.add_argument("--pooling", choices=("mean", "mean_std"), help="of tokens (default: that of the checkpoint)")
    embed.add_argument("--truncate-dim", type=whole_number, metavar="N", help="keep N numbers of each embedding")
    text = "int8 stores a quarter of the bytes (default float32)"
    embed.add_argument("--precision", choices=("float32", "int8"), default="float32", help=text)
    embed.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    text = "several processes: give one up after so long without a sign of life (default 300)"
    embed.add_argument("--wait", type=whole_number, default=300, metavar="SECONDS", help=text)
    embed.add_argument("--fields", type=Path, metavar="FIELDS", help="embed the polygons of this file (.geojson, "
                       ".gpkg, .shp, .parquet) instead; SRC is then the scene that they lie in")  # fmt: skip
    embed.add_argument("--id-column", metavar="COLUMN", help="names the fields (default: id, else file and row)")
    embed.add_argument("--shrink", type=float, metavar="METRES", help="move borders of fields inward, for GPS error")
    embed.add_argument("--crs", help="coordinate system of FIELDS, where the file does not say")
    embed.add_argument("--place", metavar="ID", help="which place of SRC the fields lie in, where it lists several")
    embed.add_argument("--s2-level", choices=("L1C", "L2A"), help="level of optics, where SRC does not say it")
    embed.add_argument("--overwrite", action="store_true", help="replace a table of another source that lies at OUT")
    embed.add_argument("--quiet", action="store_true", help="no progress bar")

    index = verbs.add(
        "index", _index, "a nearest-neighbour index of embeddings",
        "Build a nearest-neighbour index of an embeddings table.",
        examples=["croplem index patches.parquet patches.index",
                  "croplem index patches.parquet small.index --preset compact"],
        keys={"out": "folder", "rows": "vectors in it", "dim": "numbers of a vector", "preset": "as asked for",
              "recall": "share of the true ten nearest that is found, measured; null where all are compared"},
    )  # fmt: skip
    index.add_argument("embeddings", metavar="EMBEDDINGS", type=Path, help="embeddings table (.parquet)")
    index.add_argument("out", metavar="OUT", type=Path, help="index folder to write")
    text = "above 100,000 rows: half floats behind two bits a dimension (default), or half the bytes at 0.96 recall"
    index.add_argument("--preset", choices=("default", "compact"), default="default", help=text)


def _sensors(text: str) -> list[str]:
    sensors = text.split(",")
    if set(sensors) - {"s1", "s2"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not s1, s2 or s1,s2")
    return sorted(set(sensors))


def _patch_size(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 16")
    return int(text)


def _embed(args: argparse.Namespace) -> Answer | None:
    of_fields, of_others = ("id_column", "shrink", "crs", "place"), ("pooling", "truncate_dim")
    given = [name for name in (of_others if args.fields else of_fields) if getattr(args, name) is not None]
    if given:
        raise DataError(f"--{given[0].replace('_', '-')} {'does not go with' if args.fields else 'is for'} --fields")
    if args.fields:
        return _embed_fields(args)
    from .data import open_source
    from .export import export_source
    from .table import open_table, read_info

    # As `accelerate launch` and torchrun set them.
    rank, ranks, local = (int(os.environ.get(key, value)) for key, value in _RANKS.items())
    if rank:
        logging.getLogger("croplem_hf").setLevel(logging.ERROR)
    source = open_source(args.src, sensors=args.sensors, s2_level=args.s2_level)
    device = args.device or (_own_device(local) if ranks > 1 else None)
    done = export_source(
        load_embedder(args.model, device), source, args.out, sensors=args.sensors, patch_size=args.patch_size,
        centre=not args.no_centre, pooling=args.pooling or "default", truncate_dim=args.truncate_dim,
        precision=args.precision, dtype=args.dtype, progress=not args.quiet, rank=rank, ranks=ranks, wait=args.wait,
        overwrite=args.overwrite,
    )  # fmt: skip
    if done is None:
        return None
    dim = read_info(args.out, open_table(args.out))["dim"]
    return _embedded(args.out, done[0], dim, done[1], f" by {ranks} processes" if ranks > 1 else "")


def _embedded(out: Path, rows: int, dim: int, skipped: int, by: str = "") -> Answer:
    """What was embedded. Where skipped items are listed was said in the log."""
    listed = out.with_name(f"{out.name}.skipped.csv") if skipped else None
    facts = {"out": out, "rows": rows, "dim": dim, "skipped": skipped, "skipped_list": listed}
    return Answer(facts, f"{rows} embeddings of {dim} numbers in {out}{by}{f'; {skipped} skipped' if skipped else ''}")


def _own_device(local: int) -> str | None:
    """The accelerator of the process that is number `local` on its machine; None where there is none."""
    import torch

    if not torch.accelerator.is_available():
        return None
    return f"{torch.accelerator.current_accelerator().type}:{local % torch.accelerator.device_count()}"


def _embed_fields(args: argparse.Namespace) -> Answer:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DataError("fields are embedded by one process: start `croplem embed` alone")
    from .data import open_scene
    from .data.polygons import read_polygons
    from .fields import embed_fields

    polygons = read_polygons(args.fields, id_column=args.id_column, crs=args.crs)
    scene = open_scene(args.src, args.place, sensors=args.sensors, s2_level=args.s2_level)
    table = embed_fields(
        scene, polygons, load_embedder(args.model, args.device), args.out, sensors=args.sensors,
        patch_size=args.patch_size or 1, centre=not args.no_centre, shrink=args.shrink or 0.0, progress=not args.quiet,
        overwrite=args.overwrite,
    )  # fmt: skip
    return _embedded(args.out, len(table), table.vectors.shape[1], table.info.get("skipped", 0))


def _index(args: argparse.Namespace) -> Answer:
    from .index import EmbeddingIndex

    index = EmbeddingIndex.build_file(args.embeddings, args.out, preset=args.preset)
    recall = index.settings.get("recall")
    said = "" if recall is None else f"; {recall:.3f} of the ten nearest are found, measured on rows of its own"
    facts = {"out": args.out, "rows": len(index), "dim": index.dim, "preset": args.preset, "recall": recall}
    return Answer(facts, f"{len(index)} embeddings indexed in {args.out}{said}")


__all__ = ["add_verbs"]
