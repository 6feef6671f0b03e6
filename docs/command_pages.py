"""The parser of the command as its page shows it: examples and keys stay lines, as a shell prints them."""

import argparse
import re

from croplem_hf.cli import make_parser


def documented_parser() -> argparse.ArgumentParser:
    """The parser of `croplem`, blocks of its help told to reStructuredText as such."""
    parser = make_parser()
    _mark_blocks(parser)
    return parser


def _mark_blocks(parser: argparse.ArgumentParser) -> None:
    parser.epilog = re.sub(r"(?m)^(\S.*):\n(?=  )", r"\1::\n\n", parser.epilog or "")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _mark_blocks(verb)
