"""`Pool`: the labelled bags that few-shot tasks are drawn from, in memory.

At slide level a bag is a slide, or some of its tiles; at tile level each tile is a bag of one row.

::

    B  bags        N  rows (tiles) of all bags together        D  length of a feature vector
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bags import Bag, Features, PackedBags
from mil.fewshot.components import mean_of_rows
from wsi.errors import UsageError

UNKNOWN_SITE = ""
"""What the site is called of slides whose site nobody knows."""


@dataclass(frozen=True, eq=False, slots=True)
class Pool:
    """Labelled bags: of which class, whose, from where. All numbers are indices of the names beside them.

    Raises
    ------
    UsageError
        There are no bags, or a slide's bags are of two patients or of two sites: tasks could not be kept
        apart. The slide is named.
    ValueError
        Arrays that do not fit one another, or that hold what is no index.
    """

    classes: tuple[str, ...]
    """Names of the classes."""
    labels: NDArray[np.int64]
    """``(B,)`` class of each bag."""
    patients: NDArray[np.int64]
    """``(B,)`` whose it is."""
    sites: NDArray[np.int64]
    """``(B,)`` where it was made; all 0 where nobody knows, and the site is then called `UNKNOWN_SITE`."""
    slides: NDArray[np.int64]
    """``(B,)`` slide that it is, or is a part of."""
    patient_ids: tuple[str, ...]
    """Names of the patients; a slide whose patient is unknown stands for itself."""
    site_ids: tuple[str, ...]
    """Names of the sites."""
    slide_ids: tuple[str, ...]
    """Names of the slides."""
    features: Features
    """``(N, D)`` float16 or float32, bag after bag."""
    places: NDArray[np.int64]
    """``(N, 2)`` column and row of each tile in its bag's grid; see `mil.bags.grid_places`."""
    sizes: NDArray[np.int64]
    """``(B,)`` rows of each bag, none of them 0."""
    _starts: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count, rows = len(self.sizes), len(self.features)
        if not count:
            raise UsageError("there are no labelled bags", action="Label slides, or mark regions of some")
        if self.features.ndim != 2 or self.features.dtype not in (np.float16, np.float32):
            raise ValueError(f"features of shape {self.features.shape} and type {self.features.dtype}")
        if self.sizes.min() < 1 or self.sizes.sum() != rows or self.places.shape != (rows, 2):
            raise ValueError(f"{rows} rows with places {self.places.shape} are no {count} bags")
        for numbers, names in self._named():
            if numbers.shape != (count,) or numbers.min() < 0 or numbers.max() >= len(names):
                raise ValueError(f"{count} bags have {numbers.shape} numbers of {len(names)} names")
            if len(set(names)) != len(names):
                raise ValueError(f"a name occurs twice among {names[:5]}")
        self._refuse_divided(self.patients, self.patient_ids, "patients")
        self._refuse_divided(self.sites, self.site_ids, "sites")
        object.__setattr__(self, "_starts", np.cumsum(self.sizes) - self.sizes)  # it is frozen

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def dim(self) -> int:
        """Length of a feature vector, D."""
        return int(self.features.shape[1])

    @property
    def of_tiles(self) -> bool:
        """Whether every bag has one row."""
        return len(self.sizes) == len(self.features)

    def pack(self, bags: NDArray[np.int64], device: torch.device | None = None) -> PackedBags:
        """Some bags, in the order asked for, with features in float32: what `mil.bags.pack` gives of them.

        Raises
        ------
        UsageError
            No bags.
        IndexError
            There is no such bag.
        """
        rows = self._rows(bags)  # (n,)
        sizes = self.sizes[bags]
        features = self.features[rows].astype(np.float32, copy=False)  # a copy already
        return PackedBags(
            torch.from_numpy(features).to(device),
            torch.from_numpy(np.repeat(np.arange(len(bags)), sizes)).to(device),
            torch.from_numpy(self.places[rows]).to(device),
            tuple(sizes.tolist()),
        )

    def only(
        self, *, classes: Collection[str] | None = None, patients: Collection[str] | None = None
    ) -> Pool:
        """The bags of some classes and some patients, in their order; None for all.

        Names keep their order too, and those that no bag is left of are gone: numbers may be others than
        before.

        Raises
        ------
        UsageError
            There is no class or patient of such a name, or no bag of these classes and patients.
        """
        kept = np.ones(len(self), np.bool_)  # (B,)
        if classes is not None:
            kept &= _chosen("class", classes, self.classes)[self.labels]
        if patients is not None:
            kept &= _chosen("patient", patients, self.patient_ids)[self.patients]
        bags = np.flatnonzero(kept)
        if not len(bags):
            raise UsageError("no bag is of these classes and these patients", action="Ask for others")
        rows = self._rows(bags)
        (labels, names), *others = (_left(numbers[bags], names) for numbers, names in self._named())
        (patient, patient_ids), (site, site_ids), (slide, slide_ids) = others
        return Pool(
            classes=names,
            labels=labels,
            patients=patient,
            sites=site,
            slides=slide,
            patient_ids=patient_ids,
            site_ids=site_ids,
            slide_ids=slide_ids,
            features=self.features[rows],
            places=self.places[rows],
            sizes=self.sizes[bags],
        )

    def mean(self) -> NDArray[np.float32]:
        """``(D,)``: of each feature, over all rows."""
        return mean_of_rows(self.features).astype(np.float32)

    def _rows(self, bags: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(n,)`` rows of some bags, bag after bag."""
        if not len(bags):
            raise UsageError("there are no bags to pack", action="Give at least one")
        if not 0 <= bags.min() <= bags.max() < len(self):
            raise IndexError(f"bags {bags.min()} to {bags.max()} of {len(self)}")
        starts = self._starts[bags]
        if self.of_tiles:
            return starts
        sizes = self.sizes[bags]
        before = np.cumsum(sizes) - sizes
        return np.repeat(starts - before, sizes) + np.arange(sizes.sum())

    def _named(self) -> tuple[tuple[NDArray[np.int64], tuple[str, ...]], ...]:
        """Numbers and names of classes, patients, sites and slides."""
        return (
            (self.labels, self.classes),
            (self.patients, self.patient_ids),
            (self.sites, self.site_ids),
            (self.slides, self.slide_ids),
        )

    def _refuse_divided(self, numbers: NDArray[np.int64], names: tuple[str, ...], what: str) -> None:
        """A slide is of one patient and of one site."""
        of_slide = np.empty(len(self.slide_ids), np.int64)
        of_slide[self.slides] = numbers  # of each slide's last bag
        other = np.flatnonzero(of_slide[self.slides] != numbers)
        if len(other):
            slide = self.slides[other[0]]
            both = names[numbers[other[0]]], names[of_slide[slide]]
            raise UsageError(
                f"slide {self.slide_ids[slide]!r} is of two {what}, {both[0]!r} and {both[1]!r}",
                action="Give it one",
            )


def pool_of(bags: Sequence[Bag], *, classes: Sequence[str], sites: Sequence[str | None] = ()) -> Pool:
    """A pool of labelled bags in memory.

    Parameters
    ----------
    bags
        With labels. One whose patient is unknown stands for itself.
    classes
        Names of the classes.
    sites
        Of each bag; None where nobody knows. Empty: of none.

    Raises
    ------
    UsageError
        See `Pool` and `mil.bags.pack`; or a bag has no label.
    """
    for bag in bags:
        if bag.label is None:
            raise UsageError(f"slide {bag.slide_id!r} has no label", action="Label it, or leave it out")
        if bag.dim != bags[0].dim:
            raise UsageError(
                f"slides {bags[0].slide_id!r} and {bag.slide_id!r} have features of length "
                f"{bags[0].dim} and {bag.dim}",
                action="Encode all slides with the same encoder",
            )
    patients, patient_ids = numbered([bag.patient or bag.slide_id for bag in bags])
    slides, slide_ids = numbered([bag.slide_id for bag in bags])
    site, site_ids = numbered([name or UNKNOWN_SITE for name in (sites or [None] * len(bags))])
    return Pool(
        classes=tuple(classes),
        labels=np.array([bag.label for bag in bags], np.int64),
        patients=patients,
        sites=site,
        slides=slides,
        patient_ids=patient_ids,
        site_ids=site_ids,
        slide_ids=slide_ids,
        features=np.concatenate([bag.features for bag in bags]) if bags else np.empty((0, 1), np.float32),
        places=np.concatenate([bag.places for bag in bags]) if bags else np.empty((0, 2), np.int64),
        sizes=np.array([len(bag) for bag in bags], np.int64),
    )


def numbered(names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers of names, and what they are numbers of: in the order in which they first occur.

    >>> numbered(["b", "a", "b"])
    (array([0, 1, 0]), ('b', 'a'))
    """
    places = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names], np.int64), tuple(places)


def _chosen(what: str, wanted: Collection[str], names: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which of the names are wanted; each that is must be there."""
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        there = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        raise UsageError(f"no bag is of {what} {unknown[0]!r}", action=f"There are {there}")
    return np.array([name in wanted for name in names], np.bool_)


def _left(numbers: NDArray[np.int64], names: tuple[str, ...]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers of those names that still occur."""
    left, again = np.unique(numbers, return_inverse=True)
    return again.reshape(-1).astype(np.int64), tuple(names[number] for number in left)
