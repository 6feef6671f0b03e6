"""The verb `croplem push`."""

import argparse
from pathlib import Path

from .errors import DataError

KINDS = {
    "model": "folder of a checkpoint, such as OUT/model of a pretraining run",
    "dataset": "folder of shards that `croplem data build` made",
    "embeddings": "embeddings table (.parquet)",
    "index": "folder that `croplem index` wrote",
    "head": "folder that `croplem fit` wrote",
    "report": "folder that `croplem evaluate` wrote; becomes a static Space",
}


def add_verbs(verb) -> None:
    """Add the parser; `verb(name, run, text)` makes one."""
    push = verb(
        "push", _push, "Push to the Hub what was made here, in one commit with a card.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            ["PATH:", *(f"  {kind:11} {text}" for kind, text in KINDS.items()), "",
             "Data with a column `licence` that says proprietary or no-redistribution are refused. Large files that",
             "are there already are not sent again."],
        ),
    )  # fmt: skip
    push.add_argument("kind", metavar="KIND", choices=tuple(KINDS), help=", ".join(KINDS))
    push.add_argument("path", metavar="PATH", type=Path, help="what to push, see below")
    push.add_argument("repo", metavar="REPO", help="owner/name; made where there is none, private")
    push.add_argument("--licence", "--license", metavar="ID", help="such as cc-by-4.0, where the data do not say it")
    push.add_argument("--public", action="store_true", help="let all see it")
    text = "figures of `croplem evaluate` for the card of a model or head; may be repeated"
    push.add_argument("--evaluation", action="append", default=[], metavar="[NAME=]REPORT", help=text)
    text = "Markdown for the card: training data and their licences, time, energy"
    push.add_argument("--notes", type=Path, metavar="FILE.md", help=text)
    push.add_argument("--dry-run", action="store_true", help="show what would go, and the card; send nothing")


def _push(args: argparse.Namespace) -> None:
    from .cli import quiet_transformers
    from .hub import prepare, send

    quiet_transformers()
    if args.notes and not args.notes.is_file():
        raise DataError(f"{args.notes}: no such file of notes")
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    plan = prepare(
        args.kind, args.path, args.repo, licence=args.licence, evaluations=args.evaluation, notes=notes
    )  # fmt: skip
    if args.dry_run:
        print(plan.describe())
        return
    url = send(plan, public=args.public)
    print(f"{args.kind} of {len(plan.files)} files and a card, {'public' if args.public else 'private'}: {url}")


__all__ = ["add_verbs"]
