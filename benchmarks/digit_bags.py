"""Bags of handwritten digits: a multiple-instance problem whose answer is known for every instance.

After the MNIST bags of M. Ilse et al. (ICML 2018), with the 1,797 images of 8 x 8 pixels that come with
scikit-learn (E. Alpaydin and C. Kaynak, UCI, CC-BY-4.0), so that nothing has to be downloaded. A bag is
positive if a 9 is in it. Half of the bags are; their lengths are drawn from N(10, 2). Images of the test bags
are never in a training bag.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.bags import Bag

NEEDLE = 9
"""The digit that makes a bag positive."""
LENGTH, SPREAD = 10, 2
"""Mean and standard deviation of the bags' lengths, before rounding."""
TEST_SHARE = 0.4
"""Of the images, each digit by itself."""


@dataclass(frozen=True, eq=False)
class DigitBag:
    """A bag and its truth."""

    bag: Bag
    """Features are the 64 grey values, 0 to 1."""
    needle: NDArray[np.float64]
    """``(n,)``: 1 where the image is a 9."""


def digit_bags(count: int, *, seed: int, test: bool = False) -> list[DigitBag]:
    """Draw bags, every second one positive.

    The images are shared out to training and test in the same way for every seed.
    """
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    chosen = _images(digits, test=test)
    rng = np.random.default_rng([seed, int(test)])
    return [_bag(images[chosen], digits[chosen], index, rng) for index in range(count)]


def _images(digits: NDArray[np.int64], *, test: bool) -> NDArray[np.int64]:
    """Which images are for the test, or which for training."""
    rng, parts = np.random.default_rng(0), []
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(digits == digit))
        kept = round(TEST_SHARE * len(rows))
        parts.append(rows[:kept] if test else rows[kept:])
    return np.concatenate(parts)


def _bag(
    images: NDArray[np.float64], digits: NDArray[np.int64], index: int, rng: np.random.Generator
) -> DigitBag:
    """One bag; a positive one is drawn until it has a 9, a negative one without any."""
    positive = index % 2 == 1
    length = max(1, round(rng.normal(LENGTH, SPREAD)))
    pool = np.arange(len(digits)) if positive else np.flatnonzero(digits != NEEDLE)
    rows = rng.choice(pool, length)
    while positive and not (digits[rows] == NEEDLE).any():
        rows = rng.choice(pool, length)
    features = (images[rows] / 16).astype(np.float32)
    origins = np.stack([np.arange(length), np.zeros(length)], axis=1).astype(np.int32)
    bag = Bag(slide_id=f"bag-{index}", features=features, origins=origins, label=int(positive))
    return DigitBag(bag, (digits[rows] == NEEDLE).astype(np.float64))
