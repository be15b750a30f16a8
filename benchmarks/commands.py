"""Commands of ours, run as a user types them."""

from __future__ import annotations

import shlex
import sys

import cli


def microtome(*words: str) -> None:
    """Print a command line and run it; the script ends where it fails."""
    print("\n$ microtome " + shlex.join(words), flush=True)
    if cli.main(words):
        sys.exit("the command above failed")
