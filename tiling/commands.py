"""The parser of the command line: verbs with help, an example, and the options that many of them share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Options = Callable[[ArgumentParser], None]
"""Adds a group of options."""

EXIT_CODES = """\
exit codes:
  0    all done; a slide without tissue counts as done
  1    some slides failed, the others are done; or verify found damage
  2    wrong settings, labels or model: nothing was started
  70   a bug in Microtome
  74   the output cannot be written, or the disk is full: run again to resume
  75   another run is writing to the output: run again later
  130  interrupted: run again to resume; likewise 143 (SIGTERM) and 129 (SIGHUP)
"""


class Commands:
    """A parser to which one command after the other is added.

    Parameters
    ----------
    description
        What the program does.
    families
        What commands of two words have in common, by the first of them.
    """

    def __init__(self, description: str, *, families: Mapping[str, str]) -> None:
        self.parser = ArgumentParser(
            prog="microtome",
            description=description,
            epilog=EXIT_CODES,
            formatter_class=RawDescriptionHelpFormatter,
        )
        self._commands = self.parser.add_subparsers(metavar="COMMAND", required=True)
        self._families: dict[str, Any] = {}
        for name, summary in families.items():
            family = self._commands.add_parser(name, help=summary, description=summary)
            self._families[name] = family.add_subparsers(metavar="COMMAND", required=True)

    def add(self, function: Callable[[Namespace], int], example: str, *groups: Options) -> ArgumentParser:
        """Add a command of the function's name; its summary is the first line of the function's docstring."""
        summary = (function.__doc__ or "").strip().split("\n")[0]
        name = function.__name__.rstrip("_").replace("_", " ")  # import_ is no keyword
        first, _, second = name.partition(" ")
        command: ArgumentParser = self._families.get(first, self._commands).add_parser(
            second or first,
            help=summary,
            description=summary,
            epilog=f"example:\n  microtome {name} {example}",
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        for group in (*groups, _general):
            group(command)
        return command


def _general(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="results as JSON lines")
    parser.add_argument("--quiet", action="store_true", help="only what failed, no progress")
    parser.add_argument("--debug", action="store_true", help="tracebacks, and all that the libraries say")


def add_results(parser: ArgumentParser) -> None:
    """The folder of results that are there."""
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder that was given to -o")


def add_overwrite(parser: ArgumentParser) -> None:
    """Whether what is there may go."""
    parser.add_argument("--overwrite", action="store_true", help="replace results made with other settings")


def add_output(parser: ArgumentParser) -> None:
    """The folder for results, and `add_overwrite`."""
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    add_overwrite(parser)


def add_checks(parser: ArgumentParser) -> None:
    """How closely results are looked at, and what becomes of damaged ones."""
    parser.add_argument("--full", action="store_true", help="read every byte and compare its SHA-256")
    parser.add_argument("--set-aside", action="store_true", help="move damaged items to OUT/quarantine")
