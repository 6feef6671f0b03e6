"""The verbs of `croplem` that give away what was made: push and export."""

import argparse
from pathlib import Path

from .cli_parts import Answer, Verbs, quiet_transformers, whole_number
from .errors import DataError

KINDS = {
    "model": "folder of a checkpoint, such as OUT/model of a pretraining run",
    "dataset": "folder of shards that `croplem data build` made",
    "embeddings": "embeddings table (.parquet)",
    "index": "folder that `croplem index` wrote",
    "head": "folder that `croplem fit` wrote",
    "report": "folder that `croplem evaluate` wrote; becomes a static Space",
}


def add_verbs(verbs: Verbs) -> None:
    """Add the parsers."""
    kinds = "\n".join(f"  {kind:11} {text}" for kind, text in KINDS.items())
    push = verbs.add(
        "push", _push, "what was made here, to the Hub, with a card",
        "Push to the Hub what was made here, in one commit with a card.",
        notes=f"what KIND may be, and PATH then is:\n{kinds}\n\n"
        "Data with a column `licence` that says proprietary or no-redistribution are refused. Large files that are "
        "there already are not sent again.",
        examples=["croplem push index patches.index me/patches-index --licence cc-by-4.0 --dry-run",
                  "croplem push model OUT/model me/encoder --licence apache-2.0 --evaluation sudan=report"],
        keys={"kind": "as asked for", "repo": "owner/name", "repo_type": "model, dataset or space",
              "files": "bytes of each file, the card README.md among them", "left_out": "files that stay here",
              "public": "as asked for", "url": "of the commit, null with --dry-run", "card": "text of README.md"},
    )  # fmt: skip
    push.add_argument("kind", metavar="KIND", choices=tuple(KINDS), help=", ".join(KINDS))
    push.add_argument("path", metavar="PATH", type=Path, help="what to push, see below; a model also by its name")
    push.add_argument("repo", metavar="REPO", help="owner/name; made where there is none, private")
    push.add_argument("--licence", "--license", metavar="ID", help="such as cc-by-4.0, where the data do not say it")
    push.add_argument("--public", action="store_true", help="let all see it")
    text = "figures of `croplem evaluate` for the card of a model or head; may be repeated"
    push.add_argument("--evaluation", action="append", default=[], metavar="[NAME=]REPORT", help=text)
    text = "Markdown for the card: training data and their licences, time, energy"
    push.add_argument("--notes", type=Path, metavar="FILE.md", help=text)
    push.add_argument("--dry-run", action="store_true", help="show what would go, and the card; send nothing")

    export = verbs.add(
        "export", _export, "the encoder for other runtimes",
        "Write the encoder for other runtimes, held to the model when it is written.",
        notes="what FORMAT may be:\n  onnx        ONNX, for ONNX Runtime and others; needs croplem-hf[onnx]",
        examples=["croplem export onnx croplem/mae-s1s2 encoder.onnx --sensors s2 --size 64 --dates 12"],
        keys={"out": "file", "difference": "largest difference to the model of a number of an embedding",
              "tolerance": "that is allowed"},
    )  # fmt: skip
    export.add_argument("format", metavar="FORMAT", choices=("onnx",), help="onnx; needs croplem-hf[onnx]")
    export.add_argument("model", metavar="MODEL", help="checkpoint name or folder")
    export.add_argument("out", metavar="OUT.onnx", type=Path, help="file to write")
    export.add_argument("--sensors", default="s1,s2", help="s1, s2 or s1,s2 (default), which the file takes")
    export.add_argument("--size", type=whole_number, default=64, help="pixels along a side (default 64)")
    export.add_argument("--patch-size", type=whole_number, default=8, metavar="P", help="pixels a patch (default 8)")
    text = "dates of each sensor, one number or one for each, such as 12,6 (default 1)"
    export.add_argument("--dates", default="1", metavar="N", help=text)
    export.add_argument("--no-centre", action="store_true", help="keep the mean embedding of the pretraining data in")


def _read_notes(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file of notes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: notes are text in UTF-8, this is not (byte {error.start})") from error


def _push(args: argparse.Namespace) -> Answer:
    from .hub import prepare, send

    quiet_transformers()
    notes = _read_notes(args.notes) if args.notes else ""
    plan = prepare(
        args.kind, args.path, args.repo, licence=args.licence, evaluations=args.evaluation, notes=notes
    )  # fmt: skip
    url = None if args.dry_run else send(plan, public=args.public)
    facts = {
        "kind": plan.kind, "repo": plan.repo, "repo_type": plan.repo_type, "files": plan.sizes,
        "left_out": plan.left_out, "public": args.public, "url": url, "card": plan.card,
    }  # fmt: skip
    seen = "public" if args.public else "private"
    sent = f"{plan.kind} of {len(plan.files)} files and a card, {seen}: {url}"
    return Answer(facts, plan.describe() if args.dry_run else sent)


def _export(args: argparse.Namespace) -> Answer:
    from .data.files import check_ending
    from .onnx_export import TOLERANCE, export_onnx

    check_ending(args.out, ".onnx")
    quiet_transformers()
    sensors, dates = args.sensors.split(","), args.dates.split(",")
    if set(sensors) - {"s1", "s2"}:
        raise DataError(f"--sensors must be s1, s2 or s1,s2, found {args.sensors!r}")
    if not all(count.isdigit() for count in dates):
        raise DataError(f"--dates must be one number, or one for each sensor, found {args.dates!r}")
    dates = [int(count) for count in dates] * (len(sensors) if len(dates) == 1 else 1)
    worst = export_onnx(
        args.model, args.out, sensors=sensors, size=args.size, patch_size=args.patch_size, dates=dates,
        centre=not args.no_centre,
    )  # fmt: skip
    facts = {"out": args.out, "difference": worst, "tolerance": TOLERANCE}
    return Answer(facts, f"{args.out}: differs from the model by {worst:.1g} at most, {TOLERANCE:g} allowed")


__all__ = ["add_verbs"]
