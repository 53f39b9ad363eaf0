"""For all Python tests: `import moonpool` is the tooling of this checkout, while `import mooncake` is the installed wheel.

Both lie in python/, so that folder cannot go on sys.path: its mooncake has no compiled modules.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _load_tooling() -> None:
    folder = ROOT / "python" / "moonpool"
    spec = importlib.util.spec_from_file_location("moonpool", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["moonpool"] = module
    spec.loader.exec_module(module)


_load_tooling()
