"""The errors that Microtome raises.

::

    MicrotomeError                     root; a failed slide              exit 1
    ├── SlideError (OSError)           a slide cannot be read
    │   └── ResolutionError (ValueError)   no microns per pixel, absurd ones, or up-sampling asked for
    ├── NoTissueError                  the slide is fine and holds no tissue (not a failure)
    │   └── NoTilesError                   it has tissue, and the settings leave no tile of it (neither)
    ├── DamagedError (OSError)         committed output no longer has the bytes it was committed with
    ├── UsageError (ValueError)        wrong settings: nothing was started    exit 2
    │   ├── RecipeError                output made by another recipe is in the way
    │   └── UnfitError                 a machine of a cluster that is not as the others
    ├── OutputError (OSError)          output not writable, or disk full      exit 74
    ├── OutputBusyError (OSError)      another run holds the output           exit 75
    ├── DeviceLostError                a GPU failed: its process is of no use  exit 75
    ├── UnexpectedError                a fault of ours                        exit 70
    └── SchedulerLostError             the cluster's scheduler is gone        exit 75

Each is one sentence on what is wrong, where, and one on what to do.
"""

from __future__ import annotations

from os import PathLike, fspath


class MicrotomeError(Exception):
    """What is wrong (`reason`), in which file (`path`), and what to do next (`action`)."""

    exit_code = 1

    def __init__(
        self, reason: str, *, path: str | PathLike[str] | None = None, action: str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = None if path is None else fspath(path)
        self.action = action

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        todo = f". {self.action}" if self.action else ""
        return f"{where}{self.reason}{todo}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.reason, self.path, self.action))


def _rebuild(cls: type[MicrotomeError], reason: str, path: str | None, action: str | None) -> MicrotomeError:
    """Unpickle: keyword-only arguments do not survive the default way."""
    return cls(reason, path=path, action=action)


class SlideError(MicrotomeError, OSError):
    """A slide cannot be opened or read."""


class ResolutionError(SlideError, ValueError):
    """A slide states no microns per pixel, absurd ones, or coarser ones than were asked for."""


class NoTissueError(MicrotomeError):
    """The slide is sound, and no tissue was found on it."""


class NoTilesError(NoTissueError):
    """The slide has tissue, and what was asked for leaves no tile of it."""


class DamagedError(MicrotomeError, OSError):
    """Committed output no longer holds the bytes it was committed with."""


class UsageError(MicrotomeError, ValueError):
    """Wrong settings, labels or model; nothing was started."""

    exit_code = 2


class RecipeError(UsageError):
    """Output made by another recipe is where this output should go."""


class UnfitError(UsageError):
    """A machine cannot take part in a run: other versions, or it does not see the same folders."""


class OutputError(MicrotomeError, OSError):
    """The output cannot be written: no permission, or the disk is full."""

    exit_code = 74


class OutputBusyError(MicrotomeError, OSError):
    """Another run is writing to this output."""

    exit_code = 75


class DeviceLostError(MicrotomeError):
    """A GPU failed, and nothing can be computed on it in the same process any more."""

    exit_code = 75


class UnexpectedError(MicrotomeError):
    """A fault of this program, told by the slide that showed it."""

    exit_code = 70


class SchedulerLostError(MicrotomeError):
    """The scheduler of the cluster that did the work is gone."""

    exit_code = 75
