"""Verbs of `croplem data`. Every one imports what it needs when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .errors import DataError
from .label_verbs import seed_number


def add_verbs(verb: Callable, common: argparse.ArgumentParser) -> None:
    """Add `data` with its verbs; `verb(name, run, help, **kwargs)` adds a subparser, `common` are options of all."""
    data = verb("data", None, "Work with data: `sample` writes an invented one.")
    verbs = data.add_subparsers(dest="data_verb", metavar="WHAT", required=True)

    def data_verb(name: str, run: Callable, text: str, **kwargs) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, parents=[common], **kwargs)
        sub.set_defaults(run=run)
        return sub

    _add_sample(data_verb)


def _add_sample(data_verb: Callable) -> None:
    text = "Write an invented SEN12MS tree with labels.csv, to try things out without a download."
    sample = data_verb("sample", _sample, text)
    sample.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    sample.add_argument("--scenes", type=int, default=8, help="how many places, 1 to 8 (default 8)")
    sample.add_argument("--patches", type=int, default=16, help="patches of each (default 16)")
    sample.add_argument("--size", type=int, default=256, help="pixels along a side of a patch (default 256)")
    sample.add_argument("--clouds", type=float, default=0.0, help="share under cloud in every second place (default 0)")
    sample.add_argument("--seed", type=seed_number, default=0, help="of all that is random (default 0)")


def _sample(args: argparse.Namespace) -> None:
    from .data import generate_sen12ms, open_source

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise DataError(f"{args.out}: exists and is not empty; give the name of a new folder")
    root = generate_sen12ms(
        args.out, seed=args.seed, scenes=args.scenes, patches_per_scene=args.patches, size=args.size, clouds=args.clouds
    )
    print(f"{len(open_source(root))} invented patches (no real place) in {root}, labels in {root / 'labels.csv'}")


__all__ = ["add_verbs"]
