"""The command line: ``python -m wpadamw COMMAND``.

A command is a module of this package with ``add_arguments(parser)`` and ``run(args) -> int``, and a
line in ``COMMANDS``. Only the module of the command that was asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from wpadamw.bench.usage import UsageError

COMMANDS = {
    "train": "train a small GPT with AdamW and with WPAdamW, side by side",
    "study": "compare AdamW, WPAdamW and relatives on small tasks, several seeds",
    "bench": "time a step of WPAdamW, of torch's AdamW and of other packages",
    "info": "show versions, and which backend serves which device here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments after the program's name; those of the process if None.

    Raises:
        SystemExit: with status 2 where the arguments, or what they name, cannot be used.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _build_parser(argv)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except UsageError as error:
        parser.exit(2, f"{parser.prog} {args.command}: error: {error}\n")
    return status


def _build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wpadamw")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command_parser = commands.add_parser(name, help=summary, description=summary)
        if name in argv[:1]:
            command = importlib.import_module(f"wpadamw.cli.{name}")
            command.add_arguments(command_parser)
            command_parser.set_defaults(run=command.run)
    return parser
