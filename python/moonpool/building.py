"""Building: the wheel (and its installation into .venv), and the CMake presets that the tests use.

The wheel is rebuilt only when a source changed: a stamp in .venv holds the hash of every file that goes into it, so that the
second `up` starts at once, without asking CMake.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from moonpool import packages
from moonpool.commands import run
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import BUILD, DIST, IN_CHECKOUT, ROOT, VENV, VENV_PYTHON
from moonpool.provision import compile_bytecode, ensure_packages, ensure_requirements, ensure_venv, newest_wheel, uv_environment, uv_install

# What the wheel is made of.
SOURCES = ("CMakeLists.txt", "VERSION", "pyproject.toml", "cmake", "proto", "src", "python", "examples")
WHEEL_SECONDS = 1800
STAMP = VENV / "moonpool-wheel.stamp"


def source_files() -> list[Path]:
    """The files of SOURCES that git would commit; without git, all of them."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES], cwd=ROOT, capture_output=True, check=False
    )
    if listing.returncode == 0 and listing.stdout:
        paths = {ROOT / name for name in listing.stdout.decode().split("\0") if name}
    else:
        roots = [ROOT / name for name in SOURCES]
        paths = {path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))}
    return sorted(path for path in paths if path.is_file() and path.suffix != ".pyc")


def source_hash() -> str:
    """A hash over names and contents of everything that the wheel is built from."""
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def wheel_is_current() -> bool:
    """Whether .venv holds the wheel of exactly these sources."""
    return STAMP.is_file() and any(DIST.glob("moonpool-*.whl")) and STAMP.read_text() == source_hash()


def compiler_cache() -> dict[str, str]:
    """Makes ccache see the same file in every clone of this repository: paths below its root count as relative to it."""
    return {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}


def ensure_build_tools() -> None:
    ensure_packages("build", packages.BUILD_PACKAGES)
    ensure_venv()
    ensure_requirements("build", packages.BUILD_REQUIREMENTS)


def ensure_wheel() -> Path:
    """Build and install the wheel if its sources changed; returns its path in dist/. Installed from a wheel, there is nothing to build."""
    if not IN_CHECKOUT:
        return VENV
    if VENV_PYTHON.exists() and wheel_is_current():
        return newest_wheel()
    ensure_build_tools()
    before = source_hash()
    with board.row("build the wheel") as row:
        DIST.mkdir(exist_ok=True)
        for old in DIST.glob("moonpool-*.whl"):
            old.unlink()
        run(
            "build the wheel",
            [VENV / "bin" / "uv", "build", "--wheel", "--no-build-isolation", "--python", VENV_PYTHON, "--out-dir", DIST,
             "--config-setting", f"build-dir={BUILD / 'wheel'}", ROOT],
            timeout=WHEEL_SECONDS,
            env=uv_environment() | compiler_cache(),
            advice="the compiler's message is above; the build folder is build/wheel",
        )  # fmt: skip
        wheel = newest_wheel()
        row.update(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
    with board.row("install the wheel into .venv"):
        uv_install("install the wheel", ["--no-deps", "--force-reinstall", wheel])
        compile_bytecode("mooncake", "mooncake_vllm_adaptor", "moonpool")
    STAMP.write_text(before)
    return wheel


def configure(preset: str) -> Path:
    """The build folder of a CMake preset, configured for the tree as it is now: lists of tests are read from it."""
    if shutil.which("cmake") is None:
        raise UserError("cmake is missing", "./moonpool build installs it")
    folder = BUILD / preset
    run(f"configure {preset}", ["cmake", "--preset", preset], timeout=300)
    return folder


def build_preset(preset: str, *, timeout: float, targets: Sequence[str] = ()) -> None:
    """Build a preset with all cores: everything, or the targets."""
    argv: list[str | Path] = ["cmake", "--build", configure(preset), "--parallel", str(os.cpu_count() or 1)]
    with board.row(f"compile {preset}"):
        run(f"build {preset}", argv + (["--target", *targets] if targets else []), timeout=timeout, env={**os.environ, **compiler_cache()})
