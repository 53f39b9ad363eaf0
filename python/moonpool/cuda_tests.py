"""What shows that device memory works on real GPUs: the steps of ./moonpool test --cuda (testing.py runs and counts them).

The C++ tests with the ctest label "cuda", which take the real driver where there is one; the Python tests of tests/cuda, with torch; and a small
program of gathers and scatters (tests/cuda/device_moves.cpp) under compute-sanitizer.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from moonpool import cuda_host
from moonpool.commands import output, run_status
from moonpool.paths import LOGS
from moonpool.provision import gpu_indices

LABEL = "cuda"
SANITIZED = "device_moves"
SANITIZER_TOOLS = ("memcheck", "racecheck")
SANITIZER_SECONDS = 300
SANITIZER_FAILED = 99  # its exit status for an error that it found, which no program of ours has
SANITIZER_FOLDERS = (Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer"))


def no_gpu() -> str:
    """Why there is nothing to run on; empty on a host with a GPU."""
    return "" if gpu_indices() else "no GPU here (nvidia-smi lists none): the tests on GPUs are skipped; all other tests run on a fake driver"


def can_build_tests() -> bool:
    """Whether this host has GoogleTest."""
    return cuda_host.build_options()["MOONPOOL_BUILD_TESTS"] == "ON"


def labelled_programs() -> list[str]:
    """The test programs of the label in build/cuda."""
    listing = output(["ctest", "--test-dir", cuda_host.CUDA_BUILD, "-L", f"^{LABEL}$", "--show-only=json-v1"]) or "{}"
    return [test["name"] for test in json.loads(listing).get("tests", [])]


def compute_sanitizer() -> str | None:
    """The program, where it is installed."""
    return shutil.which("compute-sanitizer", path=os.pathsep.join((os.environ.get("PATH", ""), *map(str, SANITIZER_FOLDERS))))


def sanitizer_command(tool: str, sanitizer: str, program: Path) -> list[str | Path]:
    return [sanitizer, "--tool", tool, "--error-exitcode", str(SANITIZER_FAILED), program]


def sanitized_runs(sanitizer: str) -> list[tuple[str, int]]:
    """Each tool over the program, with the exit status: 0, SANITIZER_FAILED, or the program's own."""
    cuda_host.build_targets([SANITIZED])
    program = next(path for path in cuda_host.CUDA_BUILD.rglob(SANITIZED) if path.is_file() and os.access(path, os.X_OK))
    found = []
    for tool in SANITIZER_TOOLS:
        status = run_status(f"compute-sanitizer {tool}", sanitizer_command(tool, sanitizer, program), timeout=SANITIZER_SECONDS)
        found.append((tool, status))
    return found


def report(name: str) -> Path:
    return LOGS / f"{name}-cuda.xml"
