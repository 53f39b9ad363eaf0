"""The pure parts of ./moonpool bench, its worker on a store that behaves as the test wants, and that nothing outlives a stopped run."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from moonpool import bench_docs, bench_worker
from moonpool.bench_baselines import parse_iperf, parse_redis_csv
from moonpool.bench_engine import listening_address, parse_rate
from moonpool.bench_machine import describe_machine, memory_needed
from moonpool.bench_master import spoken
from moonpool.bench_options import GIB, SHAPES, Options, options_from, parser
from moonpool.bench_regression import Comparison
from moonpool.bench_results import Cell, Results, Spread, ratio
from moonpool.bench_sides import Worker, WorkerFailed
from moonpool.bench_store import rate_of
from moonpool.bench_tables import amount, grid, render, targets_table
from moonpool.errors import UserError
from moonpool.processes import Supervisor, marked_processes


def cell(side: str, *rates: float, operation: str = "put", shape: str = "4 KiB", threads: int = 1, unit: str = "objects/s", path: str = "tcp") -> Cell:
    rounds = [{"rate": rate, "p50_us": 20.0, "p99_us": 90.0, "bytes": 1e9, "cpu_client": 0.5, "cpu_storage": 0.25} for rate in rates]
    return Cell("store", path, shape, threads, operation, side, unit, rounds)


# ------------------------------------------------------------------------------------------------------------------ numbers and tables


def test_a_spread_is_the_middle_and_the_outermost_rounds() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_a_ratio_is_that_of_the_medians_and_needs_both_sides() -> None:
    assert ratio(cell("moonpool", 10, 30, 20), cell("mooncake", 4, 4, 400)) == 5
    assert ratio(cell("moonpool", 10), cell("mooncake")) is None
    assert ratio(cell("moonpool", 10), None) is None


def test_cpu_per_gigabyte_counts_client_and_storage_over_all_rounds() -> None:
    assert cell("moonpool", 1, 2).cpu_per_gigabyte() == pytest.approx(0.75)
    assert cell("moonpool").cpu_per_gigabyte() is None


def test_newer_cells_take_the_place_of_older_ones_of_the_same_key() -> None:
    results = Results(cells=[cell("moonpool", 1), cell("mooncake", 2)])
    results.merge([cell("mooncake", 5), cell("redis", 7)])
    assert [(each.side, each.rate.median) for each in results.cells if each.rate] == [("moonpool", 1), ("mooncake", 5), ("redis", 7)]


def test_results_survive_the_way_through_a_file(tmp_path: Path) -> None:
    results = Results({"CPU": "2 cores"}, {"rounds": 5}, [cell("moonpool", 1, 2)])
    results.save(tmp_path / "sub" / "r.json")
    assert Results.load(tmp_path / "sub" / "r.json") == results
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(4.567, "GB/s", "4.57"), (18.04, "GB/s", "18.0"), (27_400, "objects/s", "27 k"), (1_234_567, "keys/s", "1.23 M"), (812, "keys/s", "812")],
)
def test_rates_are_short_to_read(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_the_store_table_shows_rates_ranges_ratios_latencies_and_cpu() -> None:
    results = Results(cells=[cell("moonpool", 90e3, 100e3, 110e3), cell("mooncake", 20e3), cell("redis", 200e3)])
    text = render(results, "store", markdown=True)
    assert "| 4 KiB | put | 1 | objects/s | 100 k (90 k-110 k) | 20 k | 5.00x | 200 k | 0.50x |" in text
    assert "20.0 / 90.0" in text and "| 0.75 |" in text


def test_a_side_that_failed_is_told_with_its_codes_and_what_follows_is_not() -> None:
    stalled = cell("mooncake", shape="vLLM block", threads=4)
    stalled.failure = "codes -800 x 96; the slowest call took 60.2 s"
    following = cell("mooncake", shape="vLLM block", threads=4, operation="get")
    following.failure = "not measured: put had failed"
    text = render(Results(cells=[cell("moonpool", 2, shape="vLLM block", threads=4), stalled, following]), "store", markdown=False)
    assert "- tcp, vLLM block, 4 threads, put, mooncake: codes -800 x 96; the slowest call took 60.2 s" in text
    assert "not measured" not in text and "failed" in text


def test_a_table_that_was_not_measured_is_left_out() -> None:
    assert all(render(Results(), table, markdown=True) == "" for table in bench_docs.DESCRIPTIONS)
    assert targets_table(Results(), markdown=True) == ""


def test_columns_of_a_terminal_table_are_aligned() -> None:
    lines = grid(("a", "b"), [("1", "22"), ("333", "4")], markdown=False).splitlines()
    assert [line.index(word) for line, word in zip(lines, ("b", "22", "4"), strict=True)] == [5, 5, 5]


def test_a_target_that_was_missed_says_by_how_much() -> None:
    text = targets_table(Results(cells=[cell("moonpool", 100), cell("mooncake", 40), cell("redis", 50)]), markdown=False)
    rows = [line.split("  ") for line in text.splitlines()]
    assert any("mooncake" in row and any("no, by 2.0x" in word for word in row) for row in rows)
    assert any("redis" in row and row[-1].strip() == "yes" for row in rows)


def test_every_table_of_the_master_allocator_engine_and_wire_renders() -> None:
    cells = [
        Cell("master", "evicting", "1 million", 4, "put x 32", "moonpool", "keys/s", [{"rate": 1e6, "p50_us": 1, "p99_us": 2, "failed": 3}]),
        Cell("master", "", "1 million", 4, "memory", "moonpool", "keys/s", [{"rate": 1, "bytes_per_object": 181, "key_bytes": 64, "rss_gib": 0.3}]),
        Cell("allocator", "", "mix", 1, "churn", "moonpool", "objects/s", [{"lost_first": 0.01, "lost_mean": 0.02, "lost_worst": 0.03}]),
        Cell("engine", "", "4 KiB", 1, "read", "moonpool", "GB/s", [{"rate": 2}]),
        Cell("wire", "", "1 KiB", 1, "round trip", "wire", "round trips/s", [{"rate": 2}]),
    ]
    results = Results(cells=cells)
    assert "| 1 million | yes | put x 32 | 4 | 1.00 M |" in render(results, "master", markdown=True)
    assert "| 1 million | 181 | 64 | 0.30 |" in render(results, "master", markdown=True)
    assert "| mix | 1.00% | 2.00% | 3.00% |" in render(results, "allocator", markdown=True)
    assert "2.00" in render(results, "engine", markdown=True) and "1 KiB" in render(results, "wire", markdown=True)


def test_a_regression_line_gives_the_ratio_and_the_furthest_that_it_may_be() -> None:
    line = Comparison("put", "memcpy", Spread(2, 1, 3), Spread(4, 2, 6), "GB/s").line()
    assert "0.50 of memcpy" in line and "(0.17-1.50)" in line


def test_only_what_lies_between_the_markers_of_the_page_is_replaced() -> None:
    page = f"before\n{bench_docs.BEGIN}\nold\n{bench_docs.END}\nafter\n"
    assert bench_docs.replace_between(page, "new") == f"before\n{bench_docs.BEGIN}\nnew\n{bench_docs.END}\nafter\n"
    with pytest.raises(UserError, match="markers"):
        bench_docs.replace_between("nothing", "new")


def test_the_page_of_this_checkout_has_the_markers() -> None:
    assert "new" in bench_docs.replace_between(bench_docs.PAGE.read_text(), "new")


def test_only_the_plots_of_the_tables_make_room_for_new_ones(tmp_path: Path) -> None:
    for name in ("store-tcp.png", "wire.png", "gateway-policies.png"):
        (tmp_path / name).touch()
    bench_docs.remove_plots(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gateway-policies.png"]


# -------------------------------------------------------------------------------------------------------------- options and other tools


def test_a_quick_run_is_smaller_in_every_way() -> None:
    quick, whole = (options_from(parser().parse_args(words)) for words in (["--quick"], []))
    assert len(quick.shapes) < len(whole.shapes) and len(quick.threads) < len(whole.threads) and quick.rounds < whole.rounds
    assert whole.shapes == SHAPES and whole.threads == (1, 4, 16) and whole.paths == ("tcp", "best")


def test_words_choose_tables_and_shapes_and_a_wrong_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = options_from(parser().parse_args(["--only", "store,wire", "--shapes", "4k,vllm", "--path", "tcp", "--threads", "2,3"]))
    assert chosen.tables == ("store", "wire") and [shape.name for shape in chosen.shapes] == ["4 KiB", "vLLM block"]
    assert chosen.paths == ("tcp",) and chosen.threads == (2, 3)
    with pytest.raises(SystemExit):
        parser().parse_args(["--only", "stor"])
    assert "there are: store" in capsys.readouterr().err


def test_the_vllm_shape_is_24_blocks_of_30_pieces_of_96_kib() -> None:
    shape = next(shape for shape in SHAPES if shape.pieces > 1)
    assert (shape.batch, shape.pieces, shape.object_bytes) == (24, 30, 30 * 96 * 1024)


def test_the_memory_that_a_run_needs_is_known_before_it_starts() -> None:
    assert memory_needed(Options(tables=("wire",))) == 0
    assert memory_needed(Options()) < 23 * GIB


def test_the_machine_is_described() -> None:
    assert {"CPU", "memory", "system"} <= describe_machine().keys()


def test_other_tools_reports_are_read() -> None:
    csv = '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"\n'
    csv += '"SET","1000.5","0.1","0.1","0.5","0.6","0.7","0.8"\n"GET","2000","0.1","0.1","0.25","0.3","0.35","0.4"\n'
    assert parse_redis_csv(csv)["SET"] == {"rps": 1000.5, "p50_us": 500, "p99_us": 700}
    assert parse_redis_csv(csv)["GET"]["rps"] == 2000
    assert parse_iperf(json.dumps({"end": {"sum_received": {"bits_per_second": 16e9}}})) == 2.0
    assert parse_rate("read: 4.59 GB/s, 9 batches") == 4.59
    assert parse_rate("Test completed: duration 1.00, batch count 23, throughput 0.0301 GB/s") == 0.0301
    assert parse_rate("nothing") is None
    assert listening_address("... P2P handshake, listening on 127.0.0.1:15837\n") == "127.0.0.1:15837"
    assert listening_address("target: --segment_id=127.0.0.1:2000") == "127.0.0.1:2000"
    assert listening_address("starting") is None


def test_counts_are_spoken() -> None:
    assert [spoken(count) for count in (1_000, 1_000_000, 10_000_000, 1_234)] == ["1 thousand", "1 million", "10 million", "1234"]


def test_small_objects_are_counted_and_large_ones_weighed() -> None:
    answer = {"objects": 100.0, "bytes": 2e9, "seconds": 2.0}
    assert rate_of(SHAPES[0], "put", answer) == 50 and rate_of(SHAPES[3], "put", answer) == 1 and rate_of(SHAPES[3], "exist", answer) == 50


# ------------------------------------------------------------------------------------------------------------------------- the worker


class FakeStore:
    """Objects in a dict, read and written by address as the real one does."""

    def __init__(self, put_code: int = 0, corrupt: bool = False) -> None:
        self.objects: dict[str, bytes] = {}
        self.put_code, self.corrupt = put_code, corrupt

    def register_buffer(self, address: int, size: int) -> int:
        return 0

    def batch_put_from(self, keys: list[str], pointers: list[int], sizes: list[int]) -> list[int]:
        return self.batch_put_from_multi_buffers(keys, [[pointer] for pointer in pointers], [[size] for size in sizes])

    def batch_put_from_multi_buffers(self, keys: list[str], pointers: list[list[int]], sizes: list[list[int]]) -> list[int]:
        for key, parts, lengths in zip(keys, pointers, sizes, strict=True):
            self.objects[key] = b"".join(ctypes.string_at(part, length) for part, length in zip(parts, lengths, strict=True))
        return [self.put_code] * len(keys)

    def batch_get_into(self, keys: list[str], pointers: list[int], sizes: list[int]) -> list[int]:
        return self.batch_get_into_multi_buffers(keys, [[pointer] for pointer in pointers], [[size] for size in sizes])

    def batch_get_into_multi_buffers(self, keys: list[str], pointers: list[list[int]], sizes: list[list[int]]) -> list[int]:
        for key, parts, lengths in zip(keys, pointers, sizes, strict=True):
            at = 0
            for part, length in zip(parts, lengths, strict=True):
                value = self.objects[key][at : at + length]
                ctypes.memmove(part, bytes(length) if self.corrupt else value, length)
                at += length
        return [sum(lengths) for lengths in sizes]

    def batch_is_exist(self, keys: list[str]) -> list[int]:
        return [int(key in self.objects) for key in keys]

    def remove_all(self, force: bool) -> int:
        self.objects.clear()
        return 0


def prepared(store: FakeStore, pieces: int = 1, threads: int = 2) -> bench_worker.Client:
    client = bench_worker.Client(store)
    client.prepare(threads, 3, 6000, pieces, "test")
    return client


@pytest.mark.parametrize("pieces", [1, 30])
def test_a_worker_puts_looks_up_gets_and_finds_its_bytes_right(pieces: int) -> None:
    client = prepared(FakeStore(), pieces)
    put = client.run("put", 5.0, 2 * 4 * 3 * 6000)
    assert put["objects"] == 24 and put["bytes"] == 24 * 6000 and "failure" not in put
    assert client.verify() == {"compared": 12, "wrong": 0}
    for operation in ("exist", "get", "mixed"):
        answer = client.run(operation, 0.02, 6 * 6000)
        assert answer["objects"] > 0 and answer["p50_us"] <= answer["p99_us"] and "failure" not in answer
    assert client.intact()["wrong"] == 0
    client.clear()
    assert "nothing in the pool" in client.run("get", 0.01, 0)["failure"]


def test_codes_of_failed_puts_are_counted() -> None:
    assert prepared(FakeStore(put_code=-800)).run("put", 5.0, 1)["failure"] == "codes -800 x 6"


def test_wrong_bytes_are_found() -> None:
    client = prepared(FakeStore(corrupt=True))
    client.run("put", 5.0, 1)
    assert client.verify() == {"compared": 6, "wrong": 6}
    assert client.intact()["wrong"] == 0, "verification has to leave the regions as they were"
    client.run("get", 0.01, 0)
    assert client.intact()["wrong"] == 6


def test_slots_and_threads_differ_in_their_bytes() -> None:
    client = prepared(FakeStore())
    assert len({checksum for region in client.regions for checksum in region.checksums}) == 6


def test_an_exception_of_the_measured_library_is_a_failure_and_not_the_end() -> None:
    class Raising(FakeStore):
        def batch_put_from(self, *_: Any) -> list[int]:
            raise RuntimeError("no such luck")

    assert "no such luck" in prepared(Raising()).run("put", 1.0, 1)["failure"]


# A `mooncake` whose store does what the environment says.
FAKE_MODULE = """\
import os, time
class MooncakeDistributedStore:
    def setup(self, *arguments):
        time.sleep(float(os.environ.get("FAKE_SLEEP", "0")))
        return int(os.environ.get("FAKE_CODE", "0"))
    def close(self):
        return 0
"""


@pytest.fixture
def fake_environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "__init__.py").touch()
    (tmp_path / "mooncake" / "store.py").write_text(FAKE_MODULE)
    return {"PYTHONPATH": str(tmp_path)}


def start_worker(supervisor: Supervisor, tmp_path: Path, environment: dict[str, str]) -> Worker:
    return Worker(supervisor, "worker", Path(sys.executable), environment, tmp_path / "worker.log")


SETUP: dict[str, Any] = {"master": "127.0.0.1:1", "segment_bytes": 0, "buffer_bytes": 0}


def test_a_worker_process_answers_requests_and_goes_when_asked(tmp_path: Path, fake_environment: dict[str, str]) -> None:
    with Supervisor() as supervisor:
        worker = start_worker(supervisor, tmp_path, fake_environment)
        assert worker.ask("setup", 20, **SETUP)["setup_s"] < 20
        with pytest.raises(WorkerFailed, match="no such request"):
            worker.ask("fly", 20)
        worker.close()
        assert not Path(f"/proc/{worker.pid}").exists()


def test_a_refused_setup_is_told_with_its_code(tmp_path: Path, fake_environment: dict[str, str]) -> None:
    with Supervisor() as supervisor:
        worker = start_worker(supervisor, tmp_path, {**fake_environment, "FAKE_CODE": "-7"})
        with pytest.raises(WorkerFailed, match="setup: -7"):
            worker.ask("setup", 20, **SETUP)


def test_a_worker_that_does_not_answer_is_given_up_in_time_and_killed(tmp_path: Path, fake_environment: dict[str, str]) -> None:
    with Supervisor() as supervisor:
        worker = start_worker(supervisor, tmp_path, {**fake_environment, "FAKE_SLEEP": "900"})
        started = time.monotonic()
        with pytest.raises(WorkerFailed) as caught:
            worker.ask("setup", 0.3, **SETUP)
        assert caught.value.stalled and time.monotonic() - started < 10
        worker.kill()
        assert marked_processes(supervisor.mark) == []


def test_a_worker_that_dies_is_reported_with_its_last_words(tmp_path: Path, fake_environment: dict[str, str]) -> None:
    with Supervisor() as supervisor:
        worker = start_worker(supervisor, tmp_path, {**fake_environment, "FAKE_SLEEP": "900"})
        os.kill(worker.pid, 9)
        with pytest.raises(WorkerFailed, match="worker"):
            worker.ask("setup", 20, **SETUP)
