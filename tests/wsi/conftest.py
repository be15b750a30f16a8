"""What writes slides byte by byte, and the pixels to write."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import tifffile

from corpus import forge as forge_module
from corpus.forge import Pixels
from wsi.synthetic import write_slide


@pytest.fixture(scope="session")
def forge() -> ModuleType:
    """`corpus.forge`, for modules that name it as they use it."""
    return forge_module


@pytest.fixture(scope="session")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    """(700, 900, 3) of tissue drawn at 0.25 µm per pixel."""
    path = tmp_path_factory.mktemp("tissue") / "tissue.tif"
    write_slide(path, seed=5, lesion=True, size=(900, 700), mpp=0.25)
    return np.asarray(tifffile.imread(path, key=0), np.uint8)
