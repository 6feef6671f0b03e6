"""The verb `completion` of `croplem`: scripts that complete verbs, options and file names in a shell."""

import argparse
from pathlib import Path

from .cli_parts import Answer, Verbs

SHELLS = ("bash", "zsh", "fish")
_FILES = ("src", "images", "imagery", "image")
"""Arguments that may be the name of a dataset or an address, and mostly are a path."""


def add_verb(verbs: Verbs) -> None:
    """Add the parser."""
    completion = verbs.add(
        "completion", _completion, "completion of the command line in a shell",
        "Print the script that completes verbs, options and file names in a shell.",
        notes="""The script stands for the installed version: write it anew after an upgrade. It goes to

  bash   ~/.local/share/bash-completion/completions/croplem
  zsh    a folder of $fpath, as _croplem; then start a new shell
  fish   ~/.config/fish/completions/croplem.fish""",
        examples=["croplem completion bash > ~/.local/share/bash-completion/completions/croplem",
                  "croplem completion fish > ~/.config/fish/completions/croplem.fish"],
    )  # fmt: skip
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _completion(args: argparse.Namespace) -> Answer:
    import shtab

    from .cli import make_parser

    parser = make_parser()
    _mark_files(parser)
    return Answer({}, shtab.complete(parser, args.shell))


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Let all arguments that take a path complete file names."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _mark_files(below)
        elif action.type is Path or action.dest in _FILES:
            action.complete = shtab.FILE


__all__ = ["SHELLS", "add_verb"]
