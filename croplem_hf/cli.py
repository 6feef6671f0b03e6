"""The `croplem` command. Every verb imports what it needs when it runs, so that `--help` stays quick."""

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path

from . import __version__
from .cli_completion import add_verb as add_completion_verb
from .cli_parts import Answer, Help, Verbs, quiet_transformers, seed_number
from .data_verbs import add_verbs as add_data_verbs
from .embed_verbs import add_verbs as add_embed_verbs
from .errors import CropLEMError
from .hub_verbs import add_verbs as add_hub_verbs
from .label_verbs import add_verbs as add_label_verbs
from .similar_verb import add_verb as add_similar_verb, with_place
from .suggest_verb import add_verb as add_suggest_verb

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

`croplem VERB --help` tells the rest. With --json a verb prints one JSON object on stdout; progress and remarks go to
stderr. Exit codes: 0 done, 1 an error, 2 wrong usage, 3 something was found, 130 interrupted."""
RESUMABLE = ("embed", "map", "demo", "data build", "data download")
BARE = ([], ["data"], ["push"], ["export"])
"""Without anything behind them they say what they can do."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0 done, 1 an error, 2 wrong usage, 130 interrupted, or what a verb returns."""
    name = ""
    try:
        argv = with_place(sys.argv[1:] if argv is None else argv)
        if argv in BARE:
            return _say_what_there_is(argv)
        args = make_parser().parse_args(argv)
        name = " " + args.name
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        if args.verbose:
            logging.getLogger("croplem_hf").setLevel(logging.INFO)
        return _run(args)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough; Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CropLEMError, OSError) as error:
        if args.debug:
            raise
        print(f"croplem{name}: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = "; the same command goes on where it stopped" if name[1:] in RESUMABLE else ""
        print(f"\ncroplem{name}: interrupted{resumes}", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    """Run a verb and print what it answers. Nothing else reaches stdout."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    # A line of the log goes above a progress bar, not into it.
    with logging_redirect_tqdm(), contextlib.redirect_stdout(sys.stderr):
        answer = args.run(args)
    if answer is None:
        return 0
    print(answer.shown(args.json))
    sys.stdout.flush()
    return answer.code


def _say_what_there_is(argv: list[str]) -> int:
    """The help of a group of verbs, on stderr and as wrong usage: a script that forgot a word did not do its work."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        make_parser().parse_args([*argv, "--help"])
    return 2


def _one_line(error: Exception) -> str:
    if not isinstance(error, CropLEMError) and error.strerror:
        error = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    # What came from a damaged file may hold anything.
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="croplem",
        description="Embeddings of cropland from Sentinel-1 and Sentinel-2.",
        epilog=EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"croplem_hf {__version__}")
    verbs = Verbs(parser)
    add_embed_verbs(verbs)
    add_similar_verb(verbs)
    add_suggest_verb(verbs)
    add_label_verbs(verbs)
    info = verbs.add(
        "info", _info, "versions, or what a table, index or checkpoint holds",
        "Versions and the packaged checkpoint, or what a table, index or checkpoint holds.",
        examples=["croplem info", "croplem info patches.parquet"],
        keys={"kind": "library, embeddings table, index or checkpoint; the other keys are what is known of it, with "
              "--json and without"},
    )  # fmt: skip
    info.add_argument("path", nargs="?", type=Path, help="an embeddings table, an index or a checkpoint folder")
    add_data_verbs(verbs)
    add_hub_verbs(verbs)
    demo = verbs.add(
        "demo", _demo, "the whole chain on an invented sample, with a report",
        "The whole chain on an invented sample, with a report; some minutes.",
        notes="A run that was cut off goes on where it stopped when the same command is given again.",
        examples=["croplem demo --out croplem-demo"],
        keys={"out": "folder", "images": "invented SEN12MS tree", "patches": "in it", "skipped": "broken ones",
              "model": "checkpoint", "embeddings": "table", "rows": "of the table", "dim": "numbers of an embedding",
              "index": "folder", "head": "folder", "map": "GeoTIFF", "right": "share of its pixels, 0 to 1",
              "report": "page to open", "minutes": "that it took"},
    )  # fmt: skip
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything that it makes")
    demo.add_argument("--seed", type=seed_number, default=0, help="of the generated sample (default 0)")
    add_completion_verb(verbs)
    return parser


def _info(args: argparse.Namespace) -> Answer:
    from .info import describe

    found = describe(args.path)
    return Answer(found, Answer(found, "").shown(as_json=True))


def _demo(args: argparse.Namespace) -> Answer:
    from .demo import in_words, run_demo

    quiet_transformers()
    for name in ("demo", "training"):
        logging.getLogger(f"croplem_hf.{name}").setLevel(logging.INFO)
    made = run_demo(args.out, seed=args.seed)
    return Answer(made, in_words(made))


if __name__ == "__main__":
    sys.exit(main())
