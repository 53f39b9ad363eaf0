"""The example on a GPU: a cache saved by one process and loaded by another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("device", [f"cuda:{index}" for index in range(torch.cuda.device_count())])
def test_the_example_saves_and_loads_a_cache_bit_for_bit(device: str) -> None:
    argv = [sys.executable, "examples/paged_kv_cache.py", "--device", device, "--blocks", "128", "--rounds", "2"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every bit right") == 2 and f"on {device}" in done.stdout
