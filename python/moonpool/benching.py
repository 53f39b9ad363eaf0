"""./moonpool bench: runs the benchmarks that lie in bench/, one after the other, and prints what they print.

bench/NAME.cpp is the CMake target NAME, built by the release preset; bench/NAME.py is run by the Python in .venv, with the wheel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from moonpool.building import build_preset, configure, ensure_build_tools, ensure_wheel
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import ROOT, VENV_PYTHON

FOLDER = ROOT / "bench"
BENCH_SECONDS = 1800
BUILD_SECONDS = 1800


def benchmarks() -> list[Path]:
    """The sources of all benchmarks; a name with a leading underscore is a helper."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".cpp", ".py") and not path.name.startswith("_"))


def _built_programs(names: Sequence[str]) -> dict[str, Path]:
    """Build these targets, optimized, and find them in the build folder."""
    ensure_build_tools()
    build_preset("release", timeout=BUILD_SECONDS, targets=names)
    found = {path.name: path for path in configure("release").rglob("*") if path.name in names and path.is_file() and os.access(path, os.X_OK)}
    if missing := set(names) - found.keys():
        raise UserError(f"built, but not found in build/release: {', '.join(sorted(missing))}", "a benchmark's target has the name of its file")
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./moonpool bench", description="Builds and runs the benchmarks in bench/ and prints what they print.")
    parser.add_argument("names", nargs="*", help="only the benchmarks whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    options = parser.parse_args(arguments)
    chosen = [path for path in benchmarks() if not options.names or any(word in path.stem for word in options.names)]
    if not chosen:
        board.say(f"there are no benchmarks {'of that name ' if options.names else ''}in bench/ yet")
        return 0
    for path in chosen:
        board.say(f"benchmark: {path.stem} ({path.relative_to(ROOT)})")
    if options.list:
        return 0
    compiled = [path.stem for path in chosen if path.suffix == ".cpp"]
    programs = _built_programs(compiled) if compiled else {}
    if any(path.suffix == ".py" for path in chosen):
        ensure_wheel()
    failed = 0
    for path in chosen:
        board.say(f"\n== {path.stem}")
        argv = [VENV_PYTHON, path] if path.suffix == ".py" else [programs[path.stem]]
        failed += subprocess.run(argv, cwd=ROOT, timeout=BENCH_SECONDS, check=False).returncode != 0
    return 1 if failed else 0
