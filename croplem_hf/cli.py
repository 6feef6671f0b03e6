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
from .label_verbs import add_verbs as add_label_verbs, seed_number

EXAMPLES = """examples:
  croplem demo --out croplem-demo
  croplem embed SEN12MS/ patches.parquet
  croplem index patches.parquet patches.index
  croplem similar patches.index --id ROIs1970_fall_139_p839 --images SEN12MS/ --picture similar.png
  croplem suggest patches.parquet -n 50 --out next.csv
  croplem fit patches.parquet --labels labels.csv cropland.head
  croplem map my_scene/ --head cropland.head map.tif
  croplem evaluate patches.parquet --labels labels.csv --out report
"""
_RANKS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
RESUMABLE = ("embed", "demo", "data build", "data download")


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0 done, 1 an error, 2 wrong usage, 130 interrupted, or what a verb returns."""
    args = _parser().parse_args(argv)
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
        "embed", _embed, "Embed every patch or series of SRC into the Parquet table OUT.",
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
    embed.add_argument("--s2-level", choices=("L1C", "L2A"), help="level of optics, where SRC does not say it")
    embed.add_argument("--quiet", action="store_true", help="no progress bar")

    index = verb("index", _index, "Build a nearest-neighbour index of an embeddings table.")
    index.add_argument("embeddings", metavar="EMBEDDINGS", type=Path, help="embeddings table (.parquet)")
    index.add_argument("out", metavar="OUT", type=Path, help="index folder to write")
    text = "above 100,000 rows: half floats behind one bit a dimension (default), or half the bytes at some 0.95 recall"
    index.add_argument("--preset", choices=("default", "compact"), default="default", help=text)

    similar = verb("similar", _similar, "Find what is most like one item of an index.")
    similar.add_argument("index", metavar="INDEX", type=Path, help="folder that `croplem index` wrote")
    similar.add_argument("--id", required=True, action="append", help="item to start from; may be given several times")
    text = "only among items that fit, compared exactly; may be repeated"
    similar.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help=text)
    similar.add_argument("-k", type=int, default=10, help="how many neighbours (default 10)")
    similar.add_argument("--json", action="store_true", help="print JSON instead of a table")
    similar.add_argument("--picture", type=Path, metavar="PNG", help="draw a sheet of the items; needs --images")
    similar.add_argument("--images", metavar="SRC", help="where the items come from, for --picture")

    add_label_verbs(verb)

    info = verb("info", _info, "Versions and the packaged checkpoint, or what a table, index or checkpoint holds.")
    info.add_argument("path", nargs="?", type=Path, help="an embeddings table, an index or a checkpoint folder")

    add_data_verbs(verb, common)

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

    _quiet_transformers()
    if model is None:
        embedder = Embedder.from_pretrained(packaged_path(), device=device)
        embedder.name = DEFAULT_CHECKPOINT
        return embedder
    return Embedder.from_pretrained(model, device=device)


def _quiet_transformers() -> None:
    """No bar for a load of milliseconds, and no report of many lines where our own error says it in one."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)


def _embed(args: argparse.Namespace) -> None:
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


def _index(args: argparse.Namespace) -> None:
    from .index import EmbeddingIndex

    index = EmbeddingIndex.build_file(args.embeddings, args.out, preset=args.preset)
    recall = index.settings.get("recall")
    said = "" if recall is None else f"; {recall:.3f} of the ten nearest are found, measured on rows of its own"
    print(f"{len(index)} embeddings indexed in {args.out}{said}")


def _similar(args: argparse.Namespace) -> None:
    from .index import EmbeddingIndex

    if args.picture and not args.images:
        raise DataError("--picture needs --images SRC: the index holds no images")
    index = EmbeddingIndex.load(args.index)
    where: dict[str, list[str]] = {}
    for text in args.where:
        column, equal, value = text.partition("=")
        if not equal:
            raise DataError(f"--where must be COLUMN=VALUE, such as region=Kenya; found {text!r}")
        where.setdefault(column, []).append(value)
    found = index.query(ids=args.id, k=args.k, where=where or None)
    if args.picture:
        from .data import open_source
        from .pictures import draw_similar

        draw_similar(open_source(args.images), args.id, found, args.picture)
        print(f"picture in {args.picture}", file=sys.stderr)
    metadata = iter(index.metadata.take(found.rows.ravel()).to_pylist())
    rows = [
        next(metadata) | {"query": query, "rank": rank, "score": round(float(score), 4)}
        for query, scores in zip(args.id, found.scores, strict=True)
        for rank, score in enumerate(scores, 1)
    ]
    if args.json:
        print(json.dumps(rows, indent=1, default=str))
    else:
        columns = ["query", "rank", "id", "score", "region", "lon", "lat"]
        cells = [[_cell(row.get(c)) for c in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for line in (columns, *cells):
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _info(args: argparse.Namespace) -> None:
    from .info import describe

    print(json.dumps(describe(args.path), indent=1))


def _demo(args: argparse.Namespace) -> None:
    from .demo import run_demo

    _quiet_transformers()
    for name in ("demo", "training"):
        logging.getLogger(f"croplem_hf.{name}").setLevel(logging.INFO)
    print(run_demo(args.out, seed=args.seed))


if __name__ == "__main__":
    sys.exit(main())
