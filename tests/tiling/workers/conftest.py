"""The toy steps are imported by worker processes, so they are a module on the path, and no fixture."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.append(HERE)
