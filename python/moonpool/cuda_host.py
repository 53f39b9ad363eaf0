"""A GPU host as it is: builds Moonpool beside the torch that is installed there, and installs nothing on it.

GPU hosts are other people's machines, often without a network: neither apt nor a package index is asked. What a build can do without (hiredis, the
RDMA headers, GoogleTest) is switched off where it is missing; for what it cannot, the message says what to install. The environment is a virtual
one in .cache/cuda-venv that sees the packages of the host's python3, so .venv is left alone. One build folder, build/cuda, serves the wheel and the
C++ tests, optimized as a release.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moonpool.building import compiler_cache, source_hash
from moonpool.commands import output, run
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.paths import BUILD, CACHE, ROOT

CUDA_BUILD = BUILD / "cuda"
CUDA_VENV = CACHE / "cuda-venv"
CUDA_PYTHON = CUDA_VENV / "bin" / "python"
CUDA_DIST = CACHE / "cuda-dist"
WHEEL_STAMP = CUDA_VENV / "moonpool-wheel.stamp"
BUILD_SECONDS = 2400
INCLUDE_FOLDERS = tuple(Path(name) for name in ("/usr/include", "/usr/local/include"))
# What the build asks of the host's python3; the tests need the rest.
BUILD_MODULES = ("pip", "scikit_build_core", "nanobind")
TEST_MODULES = ("torch", "pytest", "pytest_timeout", "numpy")
_PROBE = (
    "import importlib.util as u, json, sys;"
    "print(json.dumps([list(sys.version_info[:2]), [p for p in sys.path if p.endswith('-packages')],"
    "[n for n in sys.argv[1:] if u.find_spec(n) is None]]))"
)


@dataclass(frozen=True)
class HostPython:
    """The python3 that users of this host call."""

    program: str
    version: tuple[int, int]
    folders: tuple[str, ...]  # where its packages lie
    lacks: tuple[str, ...]  # of BUILD_MODULES and TEST_MODULES


def host_python() -> HostPython:
    """The first python3 in PATH."""
    program = shutil.which("python3")
    answer = output([program, "-c", _PROBE, *BUILD_MODULES, *TEST_MODULES]) if program else None
    if program is None or answer is None:
        raise UserError("there is no python3 in PATH", "put the one that has torch first in PATH")
    version, folders, lacks = json.loads(answer)
    return HostPython(program, tuple(version), tuple(folders), tuple(lacks))


def _require(python: HostPython, modules: Sequence[str], purpose: str) -> None:
    if missing := [name for name in modules if name in python.lacks]:
        raise UserError(
            f"{python.program} lacks what {purpose} needs: {', '.join(missing)}", "install them there, or put the python3 that has them first in PATH"
        )


def has_header(name: str) -> bool:
    """Whether a header is where compilers look for it."""
    return any((folder / name).is_file() for folder in INCLUDE_FOLDERS)


def build_options() -> dict[str, str]:
    """CMake options for what this host lacks, and for a compiler that is not the one Moonpool is developed with."""
    options = {"MOONPOOL_BUILD_TESTS": "ON", "MOONPOOL_WARNINGS_AS_ERRORS": "OFF"}
    if not (has_header("gtest/gtest.h") and has_header("gmock/gmock.h")):
        options["MOONPOOL_BUILD_TESTS"] = "OFF"
    if not has_header("hiredis/hiredis.h"):
        options["MOONPOOL_WITH_REDIS"] = "OFF"
    if not (has_header("infiniband/verbs.h") and has_header("rdma/rdma_cma.h")):
        options["MOONPOOL_WITH_RDMA"] = "OFF"
    return options


def ensure_environment() -> HostPython:
    """.cache/cuda-venv on the host's python3, with the packages of the host visible in it."""
    python = host_python()
    _require(python, BUILD_MODULES, "the build")
    if (CUDA_VENV / "pyvenv.cfg").is_file() and output([CUDA_PYTHON, "-c", "import sys; print(sys.version_info[:2])"]) == f"{python.version}\n":
        return python
    with board.row("environment on the host's python3") as row:
        run("make cuda venv", [python.program, "-m", "venv", "--without-pip", "--clear", CUDA_VENV], timeout=120)
        site = CUDA_VENV / "lib" / f"python{python.version[0]}.{python.version[1]}" / "site-packages"
        # Behind its own packages, and with the .pth files in those folders read as they are for the host's python3.
        (site / "moonpool-host.pth").write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in python.folders))
        row.update(python.program)
    return python


def ensure_installed() -> Path:
    """The wheel of these sources built on this host and installed in .cache/cuda-venv; its python3."""
    ensure_environment()
    content = source_hash()
    if WHEEL_STAMP.is_file() and WHEEL_STAMP.read_text() == content:
        return CUDA_PYTHON
    if lacking := [tool for tool in ("g++", "cmake", "ninja", "protoc") if shutil.which(tool) is None]:
        raise UserError(f"these programs are missing: {', '.join(lacking)}", "install them; docs/cuda.md lists what a GPU host needs")
    options = build_options()
    with board.row("build the wheel on this host") as row:
        row.update(" ".join(f"{name}={value}" for name, value in options.items()))
        shutil.rmtree(CUDA_DIST, ignore_errors=True)
        argv: list[str | Path] = [CUDA_PYTHON, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", CUDA_DIST]
        argv += ["-C", f"build-dir={CUDA_BUILD}", "-C", "build.targets=moonpool;moonpool_native"]
        for name, value in options.items():
            argv += ["-C", f"cmake.define.{name}={value}"]
        run("build the wheel on this host", [*argv, ROOT], timeout=BUILD_SECONDS, env=build_environment(), advice="the compiler's message is above")
        wheel = next(CUDA_DIST.glob("moonpool-*.whl"))
        argv = [CUDA_PYTHON, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", "--no-warn-script-location", wheel]
        run("install the wheel on this host", argv, timeout=120)
        row.update(wheel.name)
    WHEEL_STAMP.write_text(content)
    return CUDA_PYTHON


def build_environment() -> dict[str, str]:
    """Compiling with all cores; pip in no mood for a network."""
    return {**os.environ, **compiler_cache(), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def build_targets(targets: Sequence[str]) -> None:
    """C++ programs in the wheel's build folder."""
    argv: list[str | Path] = ["cmake", "--build", CUDA_BUILD, "--target", *targets]
    with board.row("compile C++ programs on this host"):
        run("build cuda programs", argv, timeout=BUILD_SECONDS, env=build_environment())


def require_test_modules() -> None:
    _require(host_python(), TEST_MODULES, "the tests")
