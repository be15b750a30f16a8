"""What the features in a store mean, and reading them as bags."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.bags import Bag, BagSource, Rows
from mil.encoder import older_identity
from tiling.codecs import is_lossy
from tiling.context import context_key
from tiling.grid import TileSpec
from tiling.rows import RowReader
from tiling.store import TileStore
from wsi.errors import UsageError

BUDGET_BYTES = 2 << 30
"""2 GiB: half a million tiles of 2,048 features."""
_BYTES_PER_ROW = 2 * np.dtype(np.int32).itemsize  # origins
_BYTES_PER_VALUE = np.dtype(np.float16).itemsize  # as stored

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeatureRecipe:
    """Everything that two slides must share for their features to be comparable."""

    encoder: Mapping[str, Any]
    """`Encoder.identity()`."""
    spec: TileSpec
    """Size, resolution and overlap of the tiles."""
    stain: Mapping[str, Any] | None
    """How colours were normalised; None for not at all."""
    tissue: Mapping[str, Any]
    """How tissue was found: for cutting other slides likewise. Slides may differ in it and be compared."""
    min_tissue: float
    """Share of a tile that had to be tissue; likewise."""
    quality: Mapping[str, Any]
    """Which tiles were dropped for their quality; likewise."""
    pixels: Mapping[str, Any] | None
    """How pixels were stored; features of those that lost something on the way are not mixed with others."""
    exact: bool
    """Whether compressed tiles were always decoded whole."""
    contexts: tuple[float, ...] = ()
    """Coarser microns per pixel whose features stand behind the tiles' own in each row, ascending."""

    @classmethod
    def of(cls, store: TileStore, encoder_key: str, *, contexts: Sequence[float] = ()) -> FeatureRecipe:
        """The recipe of the features that a store holds.

        Raises
        ------
        UsageError
            It holds none of that encoder, or not of every context, or of one by other weights.
        RecipeError, DamagedError
            See `TileStore.require`.
        """
        scales = _ascending(contexts)
        encoder = store.require(f"features/{encoder_key}").recipe["encoder"]
        for mpp in scales:
            _check_scale(store, encoder_key, mpp, encoder)
        return cls.from_json({"encoder": encoder, "contexts": scales, **store.tiles.recipe})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FeatureRecipe:
        """What `as_json` gave."""
        return cls(
            encoder=content["encoder"],
            spec=TileSpec(**content["spec"]),
            stain=content["stain"],
            tissue=content["tissue"],
            min_tissue=content["min_tissue"],
            quality=content["quality"],
            pixels=content["pixels"],
            exact=content["exact"],
            contexts=tuple(content.get("contexts", ())),  # cards of before there was any hold none
        )

    @property
    def dim(self) -> int:
        """Length of a row of all scales."""
        return int(self.encoder["dim"]) * (1 + len(self.contexts))

    def as_json(self) -> dict[str, Any]:
        """For a model's card."""
        return {
            "encoder": dict(self.encoder),
            "spec": asdict(self.spec),
            "stain": dict(self.stain) if self.stain else None,
            "tissue": dict(self.tissue),
            "min_tissue": self.min_tissue,
            "quality": dict(self.quality),
            "pixels": dict(self.pixels) if self.pixels else None,
            "exact": self.exact,
            "contexts": list(self.contexts),
        }

    def mixing(self) -> dict[str, Any]:
        """What must be equal for features to be mixed."""
        return {
            "encoder": dict(self.encoder),
            "spec": asdict(self.spec),
            "stain": self.stain,
            "exact": self.exact,
            "contexts": list(self.contexts),
            "pixels": dict(self.pixels) if self.pixels and is_lossy(self.pixels) else "lossless",
        }

    def choice(self) -> dict[str, Any]:
        """What decides which tiles a slide has."""
        return {"tissue": self.tissue, "min_tissue": self.min_tissue, "quality": self.quality}

    def differences(self, other: FeatureRecipe) -> list[str]:
        """What differs, each as ``setting: ours, not theirs``; empty where features may be mixed."""
        if words := older_identity(self.encoder, other.encoder):
            return [f"{words}, so encode with --overwrite, and train models again"]
        ours, theirs = _flat(self.mixing()), _flat(other.mixing())
        return [
            f"{name}: {ours.get(name, 'none')}, not {theirs.get(name, 'none')}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class StoredBag:
    """A slide's features in its store, read when they are wanted, whole or in part; see `mil.bags.BagSource`.

    Made by `open_bag`, which checks the items. Only files that hold rows that are wanted are read. Pickles.
    """

    slide_id: str
    """Name of the slide."""
    scales: tuple[RowReader, ...]
    """The features of each scale, ``(n, d)`` each, finest first; their rows are put one behind the other."""
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y) of each tile's top-left corner."""
    label: int | None = None
    """Index of the class; None where it is unknown."""
    patient: str | None = None
    """Whose slide it is; None where that is unknown."""

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def dim(self) -> int:
        """Length of a feature vector: of all scales together."""
        return sum(scale.shape[1] for scale in self.scales)

    def read(self, rows: Rows | None = None) -> Bag:
        """The bag, or one of some of its tiles, in the order asked for.

        Raises
        ------
        UsageError
            NaN or infinity among what was read, see `Bag`; or rows of zeros, as a lost file leaves them where
            other programs read it.
        DamagedError
            A file is not as committed.
        """
        parts = [scale.read(rows) for scale in self.scales]
        origins = self.origins if rows is None else self.origins[rows]
        for part in parts:
            self._refuse_zeros(part, origins)
        return Bag(
            slide_id=self.slide_id,
            features=np.concatenate(parts, axis=1),
            origins=origins,
            label=self.label,
            patient=self.patient,
        )

    def _refuse_zeros(self, features: NDArray[np.float16], origins: NDArray[np.int32]) -> None:
        """No encoder says nothing of a tile."""
        empty = np.flatnonzero(~features.any(axis=1))
        if len(empty):
            x, y = origins[empty[0]].tolist()
            raise UsageError(
                f"slide {self.slide_id!r} has features that are all zero in {len(empty)} of {len(features)} "
                f"tiles, first at ({x}, {y})",
                action="Encode or import it again, or leave it out of the labels",
            )


def open_bag(
    store: TileStore,
    encoder_key: str,
    *,
    contexts: Sequence[float] = (),
    label: int | None = None,
    patient: str | None = None,
) -> StoredBag:
    """A slide's bag on disk, from the features that an encoder left in its store.

    Parameters
    ----------
    store, encoder_key
        Whose features.
    contexts
        Coarser microns per pixel, in any order; their features are put behind the tiles' own.
    label, patient
        See `Bag`.

    Raises
    ------
    UsageError
        There are no such features, or not at every scale, or not as many as there are tiles.
    DamagedError, RecipeError
        See `TileStore.open_features`.
    """
    FeatureRecipe.of(store, encoder_key, contexts=contexts)  # scales that fit one another
    scales = tuple(
        store.open_features(item.removeprefix("features/")) for item in feature_items(encoder_key, contexts)
    )
    origins = store.origins
    for scale in scales:
        if scale.shape[0] != len(origins):
            raise UsageError(
                f"slide {store.slide_id!r} has {len(origins)} tiles and {scale.shape[0]} rows of features in "
                f"{scale.item.name}",
                path=store.output.root,
                action="Encode it again with --overwrite",
            )
    return StoredBag(store.slide_id, scales, origins, label, patient)


def read_bag(
    store: TileStore,
    encoder_key: str,
    *,
    contexts: Sequence[float] = (),
    label: int | None = None,
    patient: str | None = None,
) -> Bag:
    """All of `open_bag`, in memory.

    Raises
    ------
    UsageError
        There are no such features, or they are unfit for a bag.
    DamagedError, RecipeError
        See `open_bag`.
    """
    return open_bag(store, encoder_key, contexts=contexts, label=label, patient=patient).read()


def feature_items(encoder_key: str, contexts: Sequence[float] = ()) -> tuple[str, ...]:
    """Names of the items that hold an encoder's features of the tiles and of these contexts, finest first.

    >>> feature_items("uni", [2.0, 1.0])
    ('features/uni', 'features/uni@1', 'features/uni@2')
    """
    keys = [encoder_key, *(context_key(encoder_key, mpp) for mpp in _ascending(contexts))]
    return tuple(f"features/{key}" for key in keys)


def _ascending(contexts: Sequence[float]) -> tuple[float, ...]:
    if len(set(contexts)) != len(contexts):
        raise UsageError(f"contexts {list(contexts)} name a scale twice", action="Name each of them once")
    return tuple(sorted(float(mpp) for mpp in contexts))


def _check_scale(store: TileStore, encoder_key: str, mpp: float, encoder: Mapping[str, Any]) -> None:
    """Refuse a store without that context's features, or with such as another encoder made."""
    key = context_key(encoder_key, mpp)
    item = f"features/{key}"
    if store.find(item) is None:
        raise UsageError(
            f"slide {store.slide_id!r} has no features of context at {mpp:g} µm by {encoder_key!r}",
            path=store.output.root,
            action=f"Run 'microtome encode --context-mpp {mpp:g} --slides ...' with that encoder first",
        )
    found = store.require(item).recipe["encoder"]
    if found != encoder:
        what = sorted(name for name in found.keys() | encoder.keys() if found.get(name) != encoder.get(name))
        raise UsageError(
            f"{item} of slide {store.slide_id!r} is by another encoder than features/{encoder_key} "
            f"({', '.join(what)} differ)",
            path=store.output.root,
            action="Encode it again with --overwrite",
        )


class KeptBag:
    """A bag that is read once, whole, when something of it is wanted for the first time."""

    def __init__(self, source: BagSource) -> None:
        self._source: BagSource = source

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self._source.slide_id

    @property
    def label(self) -> int | None:
        """Index of the class; None where it is unknown."""
        return self._source.label

    @property
    def patient(self) -> str | None:
        """Whose slide it is; None where that is unknown."""
        return self._source.patient

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._source.dim

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Rows | None = None) -> Bag:
        """The bag, or one of some of its tiles, in the order asked for."""
        if not isinstance(self._source, Bag):
            self._source = self._source.read()
        return self._source.read(rows)


def keep_in_memory(sources: Sequence[BagSource], *, budget_bytes: int = BUDGET_BYTES) -> list[BagSource]:
    """The same bags, of which as many are kept in memory, once read, as the budget holds.

    Parameters
    ----------
    sources
        Bags on disk or in memory. Those in memory are left alone, and cost nothing more.
    budget_bytes
        For features and origins together. Bags are counted in order, before any is read; one that does not
        fit is read from disk each time, and smaller ones after it may still fit.

    Returns
    -------
    One source a source, in order, that gives the same bags.
    """
    left = budget_bytes
    found: list[BagSource] = []
    for source in sources:
        need = len(source) * (source.dim * _BYTES_PER_VALUE + _BYTES_PER_ROW)
        if isinstance(source, Bag) or need > left:
            found.append(source)
        else:
            left -= need
            found.append(KeptBag(source))
    return found


def common_recipe(
    stores: Sequence[TileStore], encoder_key: str, *, contexts: Sequence[float] = ()
) -> FeatureRecipe:
    """The recipe that all these slides share.

    Raises
    ------
    UsageError
        Two slides differ: both are named, and in what. Or see `FeatureRecipe.of`.
    """
    if not stores:
        raise UsageError("there are no slides", action="Give at least one that was encoded")
    first = FeatureRecipe.of(stores[0], encoder_key, contexts=contexts)
    for store in stores[1:]:
        recipe = FeatureRecipe.of(store, encoder_key, contexts=contexts)
        if differences := recipe.differences(first):
            raise UsageError(
                f"slides {store.slide_id!r} and {stores[0].slide_id!r} were not made alike "
                f"({'; '.join(differences[:3])})",
                path=store.output.root,
                action="Tile and encode all slides with the same settings",
            )
        if recipe.choice() != first.choice():
            _log.warning(
                "tiles of %r and %r were chosen differently; 'microtome run' will choose them as in %r",
                store.slide_id,
                stores[0].slide_id,
                stores[0].slide_id,
            )
    return first


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
