"""The `croplem` command. Every verb imports what it needs when it runs, so that `--help` stays quick."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from . import __version__
from .data_verbs import add_verbs as add_data_verbs
from .errors import CropLEMError, DataError
from .hub_verbs import add_verbs as add_hub_verbs
from .label_verbs import add_verbs as add_label_verbs, seed_number
from .similar_verb import add_verb as add_similar_verb, with_place

EXAMPLES = """examples:
  croplem demo --out croplem-demo
  croplem embed SEN12MS/ patches.parquet
  croplem index patches.parquet patches.index
  croplem similar patches.index --id ROIs1158_spring_1_p30 --images SEN12MS/ --picture similar.png
  croplem embed my_scene/ fields.parquet --fields fields.gpkg
  croplem suggest patches.parquet -n 50 --out next.csv
  croplem fit patches.parquet --labels labels.csv cropland.head
  croplem map my_scene/ --head cropland.head map.tif
  croplem evaluate patches.parquet --labels labels.csv --out report
  croplem push index patches.index me/patches-index --licence cc-by-4.0 --dry-run
"""
_RANKS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
RESUMABLE = ("embed", "map", "demo", "data build", "data download")


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0 done, 1 an error, 2 wrong usage, 130 interrupted, or what a verb returns."""
    args = _parser().parse_args(with_place(sys.argv[1:] if argv is None else argv))
    name = " ".join(filter(None, (args.verb, getattr(args, "data_verb", None))))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if args.verbose:
        logging.getLogger("croplem_hf").setLevel(logging.INFO)
    try:
        from tqdm.contrib.logging import logging_redirect_tqdm

        # A line of the log goes above a progress bar, not into it.
        with logging_redirect_tqdm():
            code = args.run(args)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough; Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CropLEMError, OSError) as error:
        if args.debug:
            raise
        print(f"croplem {name}: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = "; the same command goes on where it stopped" if name in RESUMABLE else ""
        print(f"\ncroplem {name}: interrupted{resumes}", file=sys.stderr)
        return 130


def _one_line(error: Exception) -> str:
    if not isinstance(error, CropLEMError) and error.strerror:
        error = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="say what is loaded and from where")
    common.add_argument("--debug", action="store_true", help="show the trace of an error")
    parser = argparse.ArgumentParser(
        prog="croplem",
        description="Embeddings of cropland from Sentinel-1 and Sentinel-2.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"croplem_hf {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name, run, text, **kwargs):
        sub = verbs.add_parser(name, help=text, description=text, parents=[common], **kwargs)
        sub.set_defaults(run=run)
        return sub

    embed = verb(
        "embed", _embed, "Embed every patch, series or field of SRC into the Parquet table OUT.",
        epilog="A run that was cut off goes on where it stopped when the same command is given again. An embeddings "
        "table that already lies at OUT is made anew and replaced. Items that cannot be read are listed in "
        "OUT.skipped.csv. `accelerate launch scripts/embed.py SRC OUT`, or torchrun, shares the work among processes.",
    )  # fmt: skip
    embed.add_argument("src", metavar="SRC", help="a SEN12MS folder, a series table (.parquet) or a metadata.csv")
    embed.add_argument("out", metavar="OUT", type=Path, help="embeddings table to write (.parquet)")
    _model_arguments(embed)
    embed.add_argument("--pooling", choices=("mean", "mean_std"), help="of tokens (default: that of the checkpoint)")
    embed.add_argument("--truncate-dim", type=_positive, metavar="N", help="keep N numbers of each embedding")
    text = "int8 stores a quarter of the bytes (default float32)"
    embed.add_argument("--precision", choices=("float32", "int8"), default="float32", help=text)
    embed.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    text = "several processes: give one up after so long without a sign of life (default 300)"
    embed.add_argument("--wait", type=_positive, default=300, metavar="SECONDS", help=text)
    embed.add_argument("--fields", type=Path, metavar="FIELDS", help="embed the polygons of this file (.geojson, "
                       ".gpkg, .shp, .parquet) instead; SRC is then the scene that they lie in")  # fmt: skip
    embed.add_argument("--id-column", metavar="COLUMN", help="names the fields (default: id, else file and row)")
    embed.add_argument("--shrink", type=float, metavar="METRES", help="move borders of fields inward, for GPS error")
    embed.add_argument("--crs", help="coordinate system of FIELDS, where the file does not say")
    embed.add_argument("--place", metavar="ID", help="which place of SRC the fields lie in, where it lists several")
    embed.add_argument("--s2-level", choices=("L1C", "L2A"), help="level of optics, where SRC does not say it")
    embed.add_argument("--quiet", action="store_true", help="no progress bar")

    index = verb("index", _index, "Build a nearest-neighbour index of an embeddings table.")
    index.add_argument("embeddings", metavar="EMBEDDINGS", type=Path, help="embeddings table (.parquet)")
    index.add_argument("out", metavar="OUT", type=Path, help="index folder to write")
    text = "above 100,000 rows: half floats behind two bits a dimension (default), or half the bytes at 0.96 recall"
    index.add_argument("--preset", choices=("default", "compact"), default="default", help=text)

    add_similar_verb(verb)
    add_label_verbs(verb)

    info = verb("info", _info, "Versions and the packaged checkpoint, or what a table, index or checkpoint holds.")
    info.add_argument("path", nargs="?", type=Path, help="an embeddings table, an index or a checkpoint folder")

    add_data_verbs(verb, common)
    add_hub_verbs(verb)

    demo = verb("demo", _demo, "The whole chain on an invented sample, with a report; some minutes.")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything that it makes")
    demo.add_argument("--seed", type=seed_number, default=0, help="of the generated sample (default 0)")
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint name or folder (default: the packaged croplem/mae-s1s2)")
    parser.add_argument("--sensors", type=_sensors, help="use only these: s1, s2 or s1,s2")
    parser.add_argument("--patch-size", type=_patch_size, metavar="P", help="1 to 16 pixels (default: by image size)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: an accelerator where there is one)")
    parser.add_argument("--no-centre", action="store_true", help="keep the mean embedding of the pretraining data in")


def _sensors(text: str) -> list[str]:
    sensors = text.split(",")
    if set(sensors) - {"s1", "s2"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not s1, s2 or s1,s2")
    return sorted(set(sensors))


def _patch_size(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 16")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def load_embedder(model: str | None, device: str | None):
    """`Embedder` of a checkpoint's name or folder; of the packaged checkpoint, with no look at the network, if None."""
    from .embedding import Embedder
    from .resolver import DEFAULT_CHECKPOINT, packaged_path

    quiet_transformers()
    if model is None:
        embedder = Embedder.from_pretrained(packaged_path(), device=device)
        embedder.name = DEFAULT_CHECKPOINT
        return embedder
    return Embedder.from_pretrained(model, device=device)


def quiet_transformers() -> None:
    """No bar for a load of milliseconds, and no report of many lines where our own error says it in one."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)


def _embed(args: argparse.Namespace) -> None:
    of_fields, of_others = ("id_column", "shrink", "crs", "place"), ("pooling", "truncate_dim")
    given = [name for name in (of_others if args.fields else of_fields) if getattr(args, name) is not None]
    if given:
        raise DataError(f"--{given[0].replace('_', '-')} {'does not go with' if args.fields else 'is for'} --fields")
    if args.fields:
        _embed_fields(args)
        return
    from .data import open_source
    from .export import export_source

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
    )  # fmt: skip
    if done is not None:
        from .table import open_table, read_info

        dim = read_info(args.out, open_table(args.out))["dim"]
        by = f" by {ranks} processes" if ranks > 1 else ""
        skipped = f"; {done[1]} items skipped, listed in {args.out}.skipped.csv" if done[1] else ""
        print(f"{done[0]} embeddings of {dim} numbers in {args.out}{by}{skipped}")


def _own_device(local: int) -> str | None:
    """The accelerator of the process that is number `local` on its machine; None where there is none."""
    import torch

    if not torch.accelerator.is_available():
        return None
    return f"{torch.accelerator.current_accelerator().type}:{local % torch.accelerator.device_count()}"


def _embed_fields(args: argparse.Namespace) -> None:
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
    )  # fmt: skip
    count = table.info.get("skipped", 0)
    skipped = f"; {count} fields skipped, listed in {args.out}.skipped.csv" if count else ""
    print(f"{len(table)} embeddings of {table.vectors.shape[1]} numbers in {args.out}{skipped}")


def _index(args: argparse.Namespace) -> None:
    from .index import EmbeddingIndex

    index = EmbeddingIndex.build_file(args.embeddings, args.out, preset=args.preset)
    recall = index.settings.get("recall")
    said = "" if recall is None else f"; {recall:.3f} of the ten nearest are found, measured on rows of its own"
    print(f"{len(index)} embeddings indexed in {args.out}{said}")


def _info(args: argparse.Namespace) -> None:
    from .info import describe

    print(json.dumps(describe(args.path), indent=1))


def _demo(args: argparse.Namespace) -> None:
    from .demo import run_demo

    quiet_transformers()
    for name in ("demo", "training"):
        logging.getLogger(f"croplem_hf.{name}").setLevel(logging.INFO)
    print(run_demo(args.out, seed=args.seed))


if __name__ == "__main__":
    sys.exit(main())
