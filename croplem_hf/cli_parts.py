"""What all verbs of `croplem` share: their help, what they answer, kinds of arguments, and the model that they load."""

import argparse
import json
import logging
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .plain import plain

WIDTH = 100
"""Characters of a line of help below the options."""


class Answer(NamedTuple):
    """What a verb found or made: `facts` for scripts, which `--json` prints, `text` for people, `code` to exit with."""

    facts: Mapping
    text: str
    code: int = 0

    def shown(self, as_json: bool) -> str:
        """What goes to stdout."""
        return json.dumps(plain(self.facts), indent=1, allow_nan=False) if as_json else self.text


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with a line for each verb: argparse forgets that verbs are indented once more than options."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


class Verbs:
    """The verbs below a parser, such as those of `croplem data`.

    Args:
        parser: gets the verbs.
        words: what stands before a verb on the command line after `croplem`, such as "data ".
    """

    def __init__(self, parser: argparse.ArgumentParser, words: str = ""):
        self._words = words
        self._parsers = parser.add_subparsers(metavar="VERB", required=True)

    def add(
        self,
        name: str,
        run: Callable[[argparse.Namespace], Answer | None],
        brief: str,
        text: str,
        *,
        examples: Sequence[str] = (),
        notes: str = "",
        keys: Mapping[str, str] | None = None,
    ) -> argparse.ArgumentParser:
        """Add a verb.

        Args:
            name: what one types.
            run: does the work.
            brief: what it gives, in half a line of the list of verbs.
            text: one sentence on what it does.
            examples: command lines, with comments behind " # ".
            notes: paragraphs for the end of its help, parted by empty lines; lines that begin with blanks stay as they
                are.
            keys: what `--json` prints, key by key; None for a verb that has no such option.
        """
        parts = [_wrapped(paragraph) for paragraph in notes.split("\n\n") if paragraph]
        if examples:
            parts.append("\n".join(["examples:", *(f"  {line}" for line in examples)]))
        if keys:
            width = max(map(len, keys)) + 2
            lines = [
                textwrap.fill(what, WIDTH, initial_indent=f"  {key:{width}}", subsequent_indent=" " * (width + 2))
                for key, what in keys.items()
            ]
            parts.append("\n".join(["keys of --json:", *lines]))
        parser = self._parsers.add_parser(
            name, help=brief, description=text, epilog="\n\n".join(parts), formatter_class=Help,
        )  # fmt: skip
        parser.set_defaults(run=run, name=self._words + name, json=False)
        if keys:
            parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        parser.add_argument("--verbose", action="store_true", help="say what is loaded and from where")
        parser.add_argument("--debug", action="store_true", help="show the trace of an error")
        return parser

    def group(self, name: str, brief: str, text: str) -> "Verbs":
        """Add a word that has verbs of its own."""
        parser = self._parsers.add_parser(name, help=brief, description=text, formatter_class=Help)
        return Verbs(parser, f"{self._words}{name} ")


def _wrapped(paragraph: str) -> str:
    lines = paragraph.splitlines()
    if any(line.startswith(" ") for line in lines):
        return paragraph
    return textwrap.fill(" ".join(lines), WIDTH)


def whole_number(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def seed_number(text: str) -> int:
    """A seed: a whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def number(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    if (value := number(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


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


__all__ = [
    "Answer", "Help", "Verbs", "load_embedder", "number", "quiet_transformers", "seed_number", "share", "whole_number",
]  # fmt: skip
