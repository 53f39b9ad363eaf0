"""Where things lie, so that no other module spells a path out: in a checkout, or around a wheel that is installed somewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (ROOT / "CMakeLists.txt").is_file()

VENV = ROOT / ".venv" if IN_CHECKOUT else Path(sys.prefix)
VENV_PYTHON = VENV / "bin" / "python" if IN_CHECKOUT else Path(sys.executable)
MOONPOOL = VENV / "bin" / "moonpool"
MASTER = VENV / "bin" / "mooncake_master"

CACHE = ROOT / ".cache" if IN_CHECKOUT else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moonpool"
LOGS = CACHE / "log"
MODELS = CACHE / "models"
RUNS = CACHE / "run"
DIST = ROOT / "dist"
BUILD = ROOT / "build"
