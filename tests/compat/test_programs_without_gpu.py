"""The programs for GPUs with the CPU in their place: the example and the bench's dry run. On GPUs: tests/cuda and ./moonpool bench cuda."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from moonpool import bench_cuda
from moonpool.bench_results import Cell, Results
from moonpool.errors import UserError

ROOT = Path(__file__).parents[2]

pytest.importorskip("torch")


def link_line(path: str, shape: str, operation: str, side: str, **record: float) -> dict[str, Any]:
    return {"path": path, "shape": shape, "operation": operation, "side": side, "unit": "GB/s", "record": record}


# What bench/cuda_link.cpp says, shortened; ctest runs the program itself (cuda_link).
LINK_LINES: list[dict[str, Any]] = [
    {"device": "a GPU", "multiprocessors": 132},
    link_line("link", "whole buffer", "put", "one copy", rate=50.0, sms=0, checksums=0),
    link_line("link", "32 KiB", "put", "16 SMs", rate=40.0, sms=16, checksums=0),
    link_line("link", "32 KiB", "put", "16 SMs, checksums", rate=38.0, sms=16, checksums=1),
    link_line("link memory", "the driver's own", "put", "one copy", rate=51.0, sms=0, checksums=0),
    link_line("link driver", "launch", "call", "driver", rate=5e5, p50_us=2.0, p99_us=3.0),
    link_line("link latency", "2 MiB", "put", "16 SMs", rate=1e4, p50_us=100.0, p99_us=150.0, submit_us=30.0, wait_us=70.0),
    link_line("link latency", "2 MiB", "put", "16 SMs, unordered", rate=1e4, p50_us=96.5, p99_us=150.0, submit_us=26.5, wait_us=70.0),
    link_line("link host", "32768 pieces of 4 KiB in 1 job", "put", "submit", rate=1e8, ns_a_piece=9.5, submit_us=311.0, wait_us=3000.0),
    {"done": "link, 1 s"},
]


def stand_in_for_the_link(folder: Path) -> Path:
    program = folder / "cuda_link"
    lines = "\n".join(json.dumps(line) for line in LINK_LINES)
    program.write_text(f"#!{sys.executable}\nimport sys\nassert sys.argv[1:] == ['--fake'], sys.argv\nprint({lines!r})\n")
    program.chmod(0o755)
    return program


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
    link = stand_in_for_the_link(tmp_path)
    assert bench_cuda.main(["--dry", "--python", sys.executable, "--json", str(file), "--link", str(link), "--seconds", "600"]) == 0
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
    for shape_name in ("64 KiB as one piece", "64 KiB in pieces of 4 KiB"):
        assert {("processes", shape_name, operation, side) for operation in ("write", "read") for side in ("moonpool", "one copy")} <= contests
    assert {("sms", str(setting), operation, "moonpool") for setting in plan.settings for operation in ("put", "get")} <= contests
    assert {("link", "32 KiB", "put", "16 SMs, checksums"), ("link latency", "2 MiB", "put", "16 SMs, unordered")} <= contests
    assert all(cell.rate and cell.rate.least > 0 for cell in results.cells)
    assert {len(cell.rounds) for cell in results.cells if cell.path == "prompts" and cell.side != "one copy a piece"} == {plan.rounds}
    assert {len(cell.rounds) for cell in results.cells if cell.path == "prompts" and cell.side == "one copy a piece"} == {1}
    paths = list(dict.fromkeys(cell.path for cell in results.cells))
    assert paths[0] == "link" and paths[-1] == "prompts", "the short ones come first"
    assert results.settings["left_out"] == [] and results.machine["multiprocessors"] == "132"
    assert "The smallest ratio to the whole buffer over all shapes: put" in printed and "share one GPU" in printed
    assert json.loads(file.read_text())["settings"]["shapes"]
    page = bench_cuda.update_page(f"before\n{bench_cuda.BEGIN}\nold\n{bench_cuda.END}\nafter\n", bench_cuda.tables(results, markdown=True))
    assert page.startswith("before\n") and page.endswith("after\n") and "| trial | 8 | 64 |" in page and "old" not in page


def test_the_links_tables_have_the_curve_the_checksums_cost_and_the_parts_of_a_call() -> None:
    results = Results()
    for line in LINK_LINES:
        if "record" in line:
            said = {name: value for name, value in line.items() if name != "record"}
            results.cells.append(Cell(table="cuda", threads=1, rounds=[line["record"]], **said))
    text = bench_cuda.tables(results, markdown=True)
    assert "| 32 KiB | put | 38.0 | 50.0 | 76% |" in text
    assert "| 32 KiB | put | 40.0 / 38.0 -5.0% |" in text
    assert "| 2 MiB | put | 16 SMs | 100.0 | 150.0 | 30.0 | 70.0 | 96.5 | 26.5 | 70.0 |" in text
    assert "| the driver's own | put | 51.0 |" in text
    assert "| launch | 2.00 | 3.00 |" in text and "| 32768 pieces of 4 KiB in 1 job | put | 9.5 | 311.0 | 3000.0 |" in text


def test_a_program_that_fails_is_named_and_the_others_numbers_are_kept() -> None:
    results = Results(settings={"failed": ["link: the worker for link ended with 1"]})
    results.cells.append(Cell("cuda", "latency", "a block", 1, "put", "moonpool", "blocks/s", [{"rate": 1.0, "p50_us": 2.0, "p99_us": 3.0}]))
    text = bench_cuda.tables(results, markdown=False)
    assert "== Failed\n\n- link: the worker for link ended with 1" in text and "a block  put   moonpool" in text


def test_prompts_for_which_there_is_no_time_are_left_out_and_named() -> None:
    from moonpool.bench_cuda_worker import Budget

    assert Budget(None).fits(1 << 40)
    assert not Budget(time.time() - 1).fits(1)
    budget = Budget(time.time() + 100)
    assert budget.fits(1 << 40), "nothing is known yet"
    budget.spent(60, 1000)
    assert budget.fits(1000) and budget.fits(10) and not budget.fits(2000)
    results = Results(settings={"left_out": ["trial, 8, 64", "trial, 16, 64"]})
    assert "Left out, for want of time: trial, 8, 64; trial, 16, 64." in bench_cuda.tables(results, markdown=False)


def test_the_page_has_the_benchs_markers_and_a_page_without_is_refused() -> None:
    assert bench_cuda.update_page(bench_cuda.PAGE.read_text(), "new").count("new\n<!-- cuda: end -->") == 1
    with pytest.raises(UserError, match="markers"):
        bench_cuda.update_page("nothing", "new")


def test_the_shapes_are_those_of_the_models() -> None:
    plan = bench_cuda.make_plan(bench_cuda.parse([]))
    shapes = {shape.name: shape for shape in plan.prompts}
    assert len(shapes) == 32
    first = ["Llama-3-8B, 16, 16k", "Llama-3-70B TP8, 16, 16k", "DeepSeek-V3 MLA, 16, 16k", "Qwen2.5-7B, 16, 16k", "Llama-3-8B, 64, 16k"]
    assert list(shapes)[:5] == first, "the most telling ones"
    assert [exchange.name for exchange in plan.exchanges][-2:] == ["1 GiB as one piece", "1 GiB in pieces of 32 KiB"]
    assert (plan.rounds, bench_cuda.make_plan(bench_cuda.parse(["--seconds", "300"])).rounds) == (5, 3)
    llama = shapes["Llama-3-8B, 16, 1k"]
    assert (llama.piece_bytes, llama.layers * llama.sides, llama.prompt_bytes) == (32 << 10, 64, 128 << 20)
    assert shapes["Llama-3-70B TP8, 16, 64k"].piece_bytes == 4096
    assert shapes["Qwen2.5-7B, 64, 4k"].piece_bytes == 64 << 10
    assert shapes["DeepSeek-V3 MLA, 16, 1k"].piece_bytes == 18432
