"""How processes on other machines know that a run goes on: its name is in the work folder until it ends."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from tiling.commit import remove
from tiling.output import RUN, Output
from wsi.durable import write_file
from wsi.errors import OutputError


@contextlib.contextmanager
def announced(output: Output, run: str) -> Iterator[None]:
    """Leave the run's name where its workers look for it. The caller holds the output's lock."""
    path = output.work / RUN
    write_file(path, run.encode())
    try:
        yield
    except BaseException:
        with contextlib.suppress(OutputError):  # the first error is to be told; the next run writes over it
            remove(path)
        raise
    remove(path)


def is_on(output: Output, run: str) -> bool:
    """Whether the run goes on, as far as this machine sees; an OSError says that it cannot tell."""
    for more_tries in (2, 1, 0):
        try:
            return (output.work / RUN).read_bytes() == run.encode()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:  # of a file that was replaced, a file server may say that it is stale
            if error.errno != errno.ESTALE or not more_tries:
                raise
    raise AssertionError("it was returned or raised")
