"""Heads: from a bag of feature vectors to a slide's class. One file each, to be read alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mil.adaptors import ADAPTORS
from mil.heads.abmil import ABMIL
from mil.heads.acmil import ACMIL
from mil.heads.adapted import ADAPTOR_SETTING, AdaptedHead
from mil.heads.additive_abmil import AdditiveABMIL
from mil.heads.clam import ClamMB, ClamSB
from mil.heads.contract import Criterion, Head, HeadOutput, Settings
from mil.heads.dsmil import DSMIL
from mil.heads.dtfd import DTFD
from mil.heads.gated_abmil import GatedABMIL
from mil.heads.linear import Linear
from mil.heads.max_embedding import MaxEmbedding
from mil.heads.max_instance import MaxInstance
from mil.heads.mean import Mean
from mil.heads.settings import check_settings
from mil.heads.transmil import TransMIL
from wsi.errors import UsageError

__all__ = ["DEFAULT_HEAD", "HEADS", "Criterion", "Head", "HeadOutput", "Settings", "build_head"]

_HEADS: tuple[type[Head], ...] = (
    Linear,
    Mean,
    MaxInstance,
    MaxEmbedding,
    ABMIL,
    GatedABMIL,
    AdditiveABMIL,
    ClamSB,
    ClamMB,
    DSMIL,
    TransMIL,
    DTFD,
    ACMIL,
)

HEADS: dict[str, type[Head]] = {head.name: head for head in _HEADS}
"""Heads by name; docs/heads.md says which when."""

DEFAULT_HEAD = GatedABMIL.name
Made = TypeVar("Made")


def build_head(
    name: str, *, dim: int, classes: int, settings: Settings | None = None, adaptor: str | None = None
) -> Head:
    """Make a head with weights from torch's current generator.

    Parameters
    ----------
    name
        One of `HEADS`.
    dim
        D, of the features as they are stored.
    classes
        C.
    settings
        Hyper-parameters that differ from the defaults; those of the adaptor with ``adaptor.`` before their
        names.
    adaptor
        One of `mil.adaptors.ADAPTORS`, to stand in front of the head, or None.

    Raises
    ------
    UsageError
        No such head or adaptor, or settings that it does not have or that are none.
    """
    if name not in HEADS:
        raise UsageError(f"there is no head {name!r}", action=f"Use one of {', '.join(sorted(HEADS))}")
    settings = settings or {}
    of_head = {key: value for key, value in settings.items() if not key.startswith(ADAPTOR_SETTING)}
    of_front = {key.removeprefix(ADAPTOR_SETTING): settings[key] for key in settings if key not in of_head}
    if adaptor is None:
        if of_front:
            raise _refused(f"head {name!r}", "there are settings of an adaptor, but no adaptor")
        return _head(name, dim, classes, of_head)
    if adaptor not in ADAPTORS:
        raise UsageError(
            f"there is no adaptor {adaptor!r}", action=f"Use one of {', '.join(sorted(ADAPTORS))}"
        )
    front = _made(f"adaptor {adaptor!r}", ADAPTORS[adaptor], of_front, dim)
    return AdaptedHead(front, _head(name, front.width, classes, of_head))


def _head(name: str, dim: int, classes: int, settings: Settings) -> Head:
    return _made(f"head {name!r}", HEADS[name], settings, dim, classes)


def _made(what: str, make: Callable[..., Made], settings: Settings, *sizes: int) -> Made:
    try:
        check_settings(make, settings)
        return make(*sizes, **settings)
    except (TypeError, ValueError) as error:
        raise _refused(what, error) from error
    except RuntimeError as error:  # torch's own, for more memory than there is
        raise _refused(what, "it would be too large for this machine's memory") from error


def _refused(what: str, why: object) -> UsageError:
    return UsageError(f"{what} does not take these settings: {why}", action="Leave them out, or correct them")
