"""The programs of the wheel: small scripts named as users know them, each replaced at once by the one binary, which looks at its name."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Never returns: the process becomes the binary, with the same id, standard streams and signals."""
    binary = Path(__file__).resolve().parent.parent / "moonpool" / "bin" / "moonpool"
    name = os.path.basename(sys.argv[0])
    os.environ.setdefault("MOONPOOL_PYTHON", sys.executable)
    try:
        os.execv(binary, [name, *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"{name}: {binary} cannot be started ({error.strerror}): install the moonpool wheel again")
