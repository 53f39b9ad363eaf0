"""The programs for GPUs with the CPU in their place: the example and the bench's dry run. On GPUs: tests/cuda and ./moonpool bench cuda."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from moonpool import bench_cuda
from moonpool.bench_results import Results
from moonpool.errors import UserError

ROOT = Path(__file__).parents[2]

pytest.importorskip("torch")


def test_the_example_saves_and_loads_a_cache_bit_for_bit() -> None:
    argv = [sys.executable, "examples/paged_kv_cache.py", "--device", "cpu", "--layers", "3", "--blocks", "70", "--heads", "2", "--rounds", "2"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("saved", "loaded"))]
    assert [line.split(":")[0] for line in lines] == ["saved", "saved", "loaded", "loaded"]
    assert all("GB/s" in line for line in lines) and all("every bit right" in line for line in lines[2:])


@pytest.mark.timeout(300)
def test_the_bench_runs_dry_and_its_tables_have_every_contest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cuda.json"
    assert bench_cuda.main(["--dry", "--python", sys.executable, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "the CPU in its place" in printed and "index_select" in printed
    results = Results.load(file)
    plan = bench_cuda.make_plan(bench_cuda.parse(["--dry"]))
    contests = {(cell.path, cell.shape, cell.operation, cell.side) for cell in results.cells}
    for shape in plan.prompts:
        for operation in ("put", "get", "both"):
            for side in ("moonpool", *bench_cuda.TORCH_SIDES):
                assert ("prompts", shape.name, operation, side) in contests
    assert {("latency", plan.block.name, operation, "moonpool") for operation in ("put", "get")} <= contests
    assert {("processes", "64 KiB in pieces of 4 KiB", operation, side) for operation in ("write", "read") for side in ("moonpool", "one copy")} <= contests
    assert {("sms", str(setting), "put", "moonpool") for setting in plan.settings} <= contests
    assert all(cell.rate and cell.rate.least > 0 for cell in results.cells)
    assert {len(cell.rounds) for cell in results.cells if cell.path == "prompts"} == {plan.rounds}
    assert json.loads(file.read_text())["settings"]["shapes"]
    page = bench_cuda.update_page(f"before\n{bench_cuda.BEGIN}\nold\n{bench_cuda.END}\nafter\n", bench_cuda.tables(results, markdown=True))
    assert page.startswith("before\n") and page.endswith("after\n") and "| trial | 8 | 64 |" in page and "old" not in page


def test_the_page_has_the_benchs_markers_and_a_page_without_is_refused() -> None:
    assert bench_cuda.update_page(bench_cuda.PAGE.read_text(), "new").count("new\n<!-- cuda: end -->") == 1
    with pytest.raises(UserError, match="markers"):
        bench_cuda.update_page("nothing", "new")


def test_the_shapes_are_those_of_the_models() -> None:
    shapes = {shape.name: shape for shape in bench_cuda.make_plan(bench_cuda.parse([])).prompts}
    assert len(shapes) == 32
    llama = shapes["Llama-3-8B, 16, 1k"]
    assert (llama.piece_bytes, llama.layers * llama.sides, llama.prompt_bytes) == (32 << 10, 64, 128 << 20)
    assert shapes["Llama-3-70B TP8, 16, 64k"].piece_bytes == 4096
    assert shapes["Qwen2.5-7B, 64, 4k"].piece_bytes == 64 << 10
    assert shapes["DeepSeek-V3 MLA, 16, 1k"].piece_bytes == 18432
