"""Weights from huggingface.co: fetched once into its own cache, or a refusal that says what to do."""

from __future__ import annotations

import logging
from pathlib import Path

from mil.encoder import EncoderRow
from wsi.errors import UsageError

_log = logging.getLogger(__name__)

_FILES = ("model.safetensors", "pytorch_model.bin")
"""What model repositories call their weights, the kind that cannot run code first."""


def fetch_weights(row: EncoderRow) -> Path:
    """The file with a row's weights: from the cache of an earlier fetch, else from the hub.

    What was fetched once is not looked up again, so it works without a network, and stays what it was.

    Raises
    ------
    UsageError
        The row's weights are not on the hub, are behind conditions that were not accepted, or the hub cannot
        be reached.
    """
    source = row.source
    assert source is not None
    if source.hub is None:
        raise UsageError(
            f"the weights of {row.name} are not on the hub ({row.licence})",
            action=f"Get them from {source.address} and give the file: --weights FILE",
        )
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    for cached in (try_to_load_from_cache(source.hub, name) for name in _FILES):
        if isinstance(cached, str):
            return Path(cached)
    for name in _FILES:
        try:
            path = Path(hf_hub_download(source.hub, name))
        except errors.GatedRepoError as error:
            raise _gated(row, source.hub) from error
        except errors.LocalEntryNotFoundError as error:  # a kind of the next one, but means: no network
            raise _unreachable(row, error) from error
        except errors.EntryNotFoundError:
            continue
        except Exception as error:  # the client's own errors, those of its transport, and the system's
            raise _unreachable(row, error) from error
        _log.info("weights of %s: %s", row.name, path)
        return path
    raise UsageError(
        f"https://huggingface.co/{source.hub} has none of the files {', '.join(_FILES)}",
        action=f"Give the weights of {row.name} as a file: --weights FILE (.safetensors, .pth or .bin)",
    )


def _gated(row: EncoderRow, hub: str) -> UsageError:
    return UsageError(
        f"the weights of {row.name} are given out on conditions ({row.licence}), which this machine's user "
        "has not accepted",
        action=f"Accept them at https://huggingface.co/{hub}, make a token that can read at "
        "https://huggingface.co/settings/tokens and set it as HF_TOKEN; or give a file: --weights FILE",
    )


def _unreachable(row: EncoderRow, error: Exception) -> UsageError:
    assert row.source is not None
    gate = "; its conditions have to be accepted there first" if row.source.gated else ""
    return UsageError(
        f"the weights of {row.name} cannot be had from the hub ({type(error).__name__})",
        action="Give them as a file: --weights FILE (.safetensors, .pth or .bin). They are at "
        f"https://huggingface.co/{row.source.hub} ({row.licence}{gate})",
    )
