"""mooncake.engine.TransferEngine: bytes between two processes, found through P2PHANDSHAKE or any metadata server."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from compat_programs import BIN, MIB, Program, accepts, free_port, http_ok, longest_pause, stopped, wait_until
from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode
from moonpool.measuring import in_bounds

SIZE = 4 * MIB

PEER = """
import sys, time
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize(sys.argv[1], sys.argv[2], "tcp", "") == 0
buffer = engine.allocate_managed_buffer(int(sys.argv[3]))
assert buffer > 0
print(engine.get_rpc_port(), buffer, flush=True)
for line in sys.stdin:
    if line.strip() == "notifies":
        print([(n.name, n.msg) for n in engine.get_notifies()], flush=True)
"""


class Peer:
    """Another process with an engine and one registered buffer of SIZE bytes."""

    def __init__(self, name: str, metadata: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PEER, name, metadata, str(SIZE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.port, self.buffer = (int(word) for word in self.process.stdout.readline().split())
        except ValueError:
            self.kill()
            raise AssertionError("the peer did not start") from None

    def ask(self, question: str) -> str:
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    process = Peer("127.0.0.1", "P2PHANDSHAKE")
    yield process
    process.kill()


@pytest.fixture(scope="module")
def engine() -> TransferEngine:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    return engine


@pytest.fixture
def local(engine) -> Iterator[numpy.ndarray]:
    array = numpy.frombuffer(bytearray(os.urandom(SIZE)), dtype=numpy.uint8)
    assert engine.register_memory(array.ctypes.data, array.nbytes) == 0
    yield array
    assert engine.unregister_memory(array.ctypes.data) == 0


def test_bytes_written_to_a_peer_are_read_back(engine, peer, local) -> None:
    session, at, expected = f"127.0.0.1:{peer.port}", local.ctypes.data, local.copy()
    assert engine.get_first_buffer_address(session) == peer.buffer
    assert engine.transfer_sync_write(session, at, peer.buffer, SIZE) == 0
    local[:] = 0
    assert engine.transfer_sync_read(session, at, peer.buffer, SIZE) == 0
    assert (local == expected).all()
    assert engine.transfer_sync(session, at, peer.buffer + 100, 50, TransferOpcode.Read) == 0
    assert (local[:50] == expected[100:150]).all()


def test_a_batch_moves_all_its_pieces(engine, peer, local) -> None:
    session, at, expected = f"127.0.0.1:{peer.port}", local.ctypes.data, local.copy()
    count, piece = 64, SIZE // 64
    sources = [at + i * piece for i in range(count)]
    mirrored = [peer.buffer + (count - 1 - i) * piece for i in range(count)]
    assert engine.batch_transfer_sync_write(session, sources, mirrored, [piece] * count) == 0
    local[:] = 0
    assert engine.batch_transfer_sync_read(session, sources, mirrored, [piece] * count) == 0
    assert (local == expected).all()
    assert engine.batch_transfer_sync(session, [at], [peer.buffer], [piece], TransferOpcode.Read) == 0
    assert (local[:piece] == expected[-piece:]).all()
    assert engine.batch_transfer_sync_read(session, [at], [peer.buffer], [1, 2]) == -1


def test_asynchronous_transfers_end_and_tell_how(engine, peer, local) -> None:
    session, at, expected = f"127.0.0.1:{peer.port}", local.ctypes.data, local.copy()
    ids = [engine.batch_transfer_async_write(session, [at + i * 1000], [peer.buffer + i * 1000], [1000]) for i in range(20)]
    assert all(ids) and engine.get_batch_transfer_status(ids) == 0
    submitted = engine.transfer_submit_write(session, at + 20_000, peer.buffer + 20_000, 1000)
    assert submitted > 0
    wait_until(lambda: engine.transfer_check_status(submitted) == 1, "the write is done")
    assert engine.transfer_check_status(submitted) == 1
    local[:] = 0
    assert engine.get_batch_transfer_status([engine.batch_transfer_async(session, [at], [peer.buffer], [21_000], TransferOpcode.Read)]) == 0
    assert (local[:21_000] == expected[:21_000]).all()
    failed = engine.batch_transfer_async_read(session, [at], [peer.buffer + SIZE - 1], [2])
    assert failed == 0 or engine.get_batch_transfer_status([failed]) == -1
    assert engine.transfer_check_status(10**15) == -1
    assert engine.transfer_check_status(-5) == -1
    assert engine.get_batch_transfer_status([10**15]) == -1


def test_memory_that_is_not_registered_is_out_of_reach(engine, peer, local) -> None:
    session, at = f"127.0.0.1:{peer.port}", local.ctypes.data
    stranger = numpy.zeros(100, dtype=numpy.uint8)
    assert engine.transfer_sync_read(session, at, peer.buffer + SIZE - 10, 11) == -1
    assert engine.transfer_sync_write(session, at, 4096, 10) == -1
    assert engine.transfer_sync_read(session, stranger.ctypes.data, peer.buffer, 100) == -1
    assert engine.transfer_sync_read(session, at, peer.buffer, 100) == 0


def test_registration_answers_for_bad_and_overlapping_ranges(engine) -> None:
    array = numpy.zeros(8192, dtype=numpy.uint8)
    at = array.ctypes.data
    assert engine.register_memory(0, 10) == -1
    assert engine.register_memory(at, 0) == -1
    assert engine.register_memory(at, 4096) == 0
    assert engine.register_memory(at + 100, 10) == -7
    assert engine.unregister_memory(at) == 0
    assert engine.unregister_memory(at) == -3
    assert engine.batch_register_memory([at, at + 4096], [4096, 4096]) == 0
    assert engine.batch_unregister_memory([at, at + 4096]) == 0
    assert engine.batch_register_memory([at, at + 10], [4096, 10]) == -7
    assert engine.unregister_memory(at) == -3  # all or none
    assert engine.batch_register_memory([at], []) == -1


def test_managed_buffers_and_their_bytes(engine) -> None:
    buffer = engine.allocate_managed_buffer(4096)
    assert buffer > 0
    assert engine.write_bytes_to_buffer(buffer, b"a\x00\xff", 3) == 0
    assert engine.write_bytes_to_buffer(buffer + 3, "text", 4) == 0
    assert engine.read_bytes_from_buffer(buffer, 7) == b"a\x00\xfftext"
    assert engine.write_bytes_to_buffer(buffer, b"short", 6) == -1
    with pytest.raises(TypeError):
        engine.write_bytes_to_buffer(buffer, 5, 1)
    assert engine.free_managed_buffer(buffer, 4096) == 0
    assert engine.free_managed_buffer(buffer, 4096) == -1
    assert engine.allocate_managed_buffer(0) == 0


def test_a_notification_arrives_after_its_transfer(engine, peer, local) -> None:
    session, at = f"127.0.0.1:{peer.port}", local.ctypes.data
    assert engine.transfer_sync(session, at, peer.buffer, 10, TransferOpcode.Write, TransferNotify("request-1", "done")) == 0
    assert engine.batch_transfer_sync(session, [at], [peer.buffer], [10], TransferOpcode.Write, notify=TransferNotify("request-2", "")) == 0
    assert peer.ask("notifies") == "[('request-1', 'done'), ('request-2', '')]"
    assert peer.ask("notifies") == "[]"
    assert engine.get_notifies() == []


def test_probes_and_unknown_peers(engine, peer, local) -> None:
    assert engine.send_probe(f"127.0.0.1:{peer.port}") == 0
    nobody = f"127.0.0.1:{free_port()}"
    assert engine.send_probe(nobody) == -1
    assert engine.get_first_buffer_address(nobody) == 0
    assert engine.transfer_sync_read(nobody, local.ctypes.data, 4096, 10) == -1
    assert engine.transfer_sync_read("no such name", local.ctypes.data, 4096, 10) == -1


def test_other_threads_run_while_a_transfer_waits_for_a_stopped_peer(monkeypatch, capfd) -> None:
    monkeypatch.setenv("MOONPOOL_TRANSFER_TIMEOUT_MS", "1500")
    peer = Peer("127.0.0.1", "P2PHANDSHAKE")
    try:
        engine = TransferEngine()
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        buffer = engine.allocate_managed_buffer(SIZE)
        session = f"127.0.0.1:{peer.port}"
        assert engine.transfer_sync_read(session, buffer, peer.buffer, 10) == 0
        with stopped(peer):
            codes: list[int] = []

            def write() -> None:
                codes.append(engine.transfer_sync_write(session, buffer, peer.buffer, SIZE))

            in_bounds("the longest pause", lambda: longest_pause(write, 6), 1.0)
            assert set(codes) == {-1}
        assert session in capfd.readouterr().err
    finally:
        peer.kill()


def test_calls_before_initialize_answer_codes(capfd) -> None:
    engine = TransferEngine()
    assert engine.get_rpc_port() == -1
    assert engine.register_memory(4096, 10) == -1
    assert engine.transfer_sync_read("a:1", 1, 1, 1) == -1
    assert engine.batch_transfer_async_read("a:1", [1], [1], [1]) == 0
    assert engine.get_batch_transfer_status([1]) == -1
    assert engine.get_notifies() == []
    assert engine.allocate_managed_buffer(10) == 0
    assert len([line for line in capfd.readouterr().err.splitlines() if "initialize" in line]) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("127.0.0.1", "nonsense://x", "tcp", ""), "nonsense"),
        (("127.0.0.1", "etcd://127.0.0.1:1", "tcp", ""), "127.0.0.1:1"),
        (("no.such.host.invalid", "P2PHANDSHAKE", "tcp", ""), "no.such.host.invalid"),
        (("127.0.0.1", "P2PHANDSHAKE", "tpc", ""), "did you mean 'tcp'?"),
        (("127.0.0.1", "P2PHANDSHAKE", "rdma", "no_such_nic0"), "tcp"),
        (("", "P2PHANDSHAKE", "tcp", ""), "name"),
    ],
)
def test_wrong_initialisation_is_minus_one_and_one_line(capfd, arguments, named) -> None:
    start = time.monotonic()
    assert TransferEngine().initialize(*arguments) == -1
    assert time.monotonic() - start < 35
    lines = [line for line in capfd.readouterr().err.splitlines() if "initialize failed" in line]
    assert len(lines) == 1 and named in lines[0]


def _etcd(folder: Path) -> tuple[str, Program]:
    client, peers = free_port(), free_port()
    program = Program(
        ["etcd", "--data-dir", str(folder / "data"), "--listen-client-urls", f"http://127.0.0.1:{client}", "--advertise-client-urls",
         f"http://127.0.0.1:{client}", "--listen-peer-urls", f"http://127.0.0.1:{peers}"], folder / "etcd.log",
    )  # fmt: skip
    return f"etcd://127.0.0.1:{client}", program.ready(lambda: http_ok(f"http://127.0.0.1:{client}/health"))


def _redis(folder: Path) -> tuple[str, Program]:
    port = free_port()
    program = Program(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""], folder / "redis.log")
    return f"redis://127.0.0.1:{port}", program.ready(lambda: accepts(port))


def _http(folder: Path) -> tuple[str, Program]:
    port = free_port()
    program = Program([str(BIN / "mooncake_http_metadata_server"), "--host", "127.0.0.1", f"--port={port}"], folder / "http.log")
    return f"http://127.0.0.1:{port}/metadata", program.ready(lambda: http_ok(f"http://127.0.0.1:{port}/health"))


@pytest.mark.parametrize("server", [_etcd, _redis, _http], ids=["etcd", "redis", "http"])
def test_peers_find_each_other_through_a_metadata_server(tmp_path, master, server) -> None:
    needed = {"_etcd": "etcd", "_redis": "redis-server"}.get(server.__name__)
    if needed and shutil.which(needed) is None:
        pytest.skip(f"{needed} is not installed")
    url, program = server(tmp_path)
    peer = None
    try:
        name = f"127.0.0.1:{free_port()}"
        peer = Peer(name, url)
        engine = TransferEngine()
        assert engine.initialize("127.0.0.1", url, "tcp", "") == 0
        buffer = engine.allocate_managed_buffer(4096)
        ctypes.memset(buffer, 9, 4096)
        assert engine.transfer_sync_write(name, buffer, engine.get_first_buffer_address(name), 4096) == 0
        ctypes.memset(buffer, 0, 4096)
        assert engine.transfer_sync_read(name, buffer, peer.buffer, 4096) == 0
        assert engine.read_bytes_from_buffer(buffer, 4096) == b"\x09" * 4096
        # The store publishes itself on the same server.
        from compat_programs import set_up

        store = set_up(master.address, segment=8 * MIB, metadata=url)
        assert store.put("through metadata", b"x") == 0
        assert store.remove("through metadata", True) == 0
        store.close()
    finally:
        if peer:
            peer.kill()
        program.kill()


def test_several_engines_of_one_process_reach_each_other_and_themselves() -> None:
    engines = [TransferEngine() for _ in range(3)]
    buffers = []
    for engine in engines:
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        buffers.append([engine.allocate_managed_buffer(MIB) for _ in range(2)])
    sessions = [f"127.0.0.1:{engine.get_rpc_port()}" for engine in engines]
    assert len(set(sessions)) == 3
    for i, engine in enumerate(engines):
        for j, session in enumerate(sessions):
            text = f"from {i} to {j}"
            assert engine.write_bytes_to_buffer(buffers[i][0], text, len(text)) == 0
            # The second of the peer's two ranges, also where the peer is the engine itself.
            assert engine.transfer_sync_write(session, buffers[i][0], buffers[j][1] + 1000 * i, len(text)) == 0
            assert engines[j].read_bytes_from_buffer(buffers[j][1] + 1000 * i, len(text)) == text.encode()
            assert engine.send_probe(session) == 0
    for engine, own in zip(engines, buffers, strict=True):
        assert [engine.free_managed_buffer(buffer, MIB) for buffer in own] == [0, 0]


def test_a_transfer_may_use_several_ranges_of_memory_on_both_sides() -> None:
    ours, theirs = TransferEngine(), TransferEngine()
    memory = []
    for engine in (ours, theirs):
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        arrays = [numpy.frombuffer(bytearray(os.urandom(size)), dtype=numpy.uint8) for size in (100_000, 1000, 50_000)]
        assert engine.batch_register_memory([a.ctypes.data for a in arrays], [a.nbytes for a in arrays]) == 0
        memory.append(arrays)
    session = f"127.0.0.1:{theirs.get_rpc_port()}"
    here, there = ([a.ctypes.data for a in arrays] for arrays in memory)
    assert ours.get_first_buffer_address(session) in there
    # Crosswise, and one range twice.
    sources, targets, lengths = [here[0] + 7, here[2], here[1], here[0]], [there[2], there[0] + 60_000, there[0], there[1] + 999], [40_000, 30_000, 1000, 1]
    assert ours.batch_transfer_sync_write(session, sources, targets, lengths) == 0
    for source, target, length in zip(sources, targets, lengths, strict=True):
        assert ctypes.string_at(source, length) == ctypes.string_at(target, length)
    for call in (ours.batch_transfer_async_write, ours.batch_transfer_async_read):
        assert ours.get_batch_transfer_status([call(session, sources, targets, lengths) for _ in range(3)]) == 0
    # One piece that leaves its range fails the whole, and nothing of it is moved.
    before = [a.tobytes() for a in memory[1]]
    assert ours.batch_transfer_sync_write(session, [here[2], here[0]], [there[2], there[1]], [100, 1001]) == -1
    assert [a.tobytes() for a in memory[1]] == before
    assert theirs.unregister_memory(there[0]) == 0
    assert ours.transfer_sync_read(session, here[0], there[0], 10) == -1, "what is no longer registered is out of reach"
    assert ours.transfer_sync_read(session, here[0], there[2], 10) == 0


def test_every_call_takes_its_optional_arguments(engine, peer, local) -> None:
    session, at = f"127.0.0.1:{peer.port}", local.ctypes.data
    hint = {"transport_hint": "tcp"}
    assert engine.transfer_sync_write(session, at, peer.buffer, 100, **hint) == 0
    assert engine.transfer_sync_read(session, at, peer.buffer, 100, **hint) == 0
    assert engine.transfer_sync(session, at, peer.buffer, 100, TransferOpcode.Read, None, "tcp") == 0
    assert engine.batch_transfer_sync_write(session, [at], [peer.buffer], [100], **hint) == 0
    assert engine.batch_transfer_sync_read(session, [at], [peer.buffer], [100], **hint) == 0
    assert engine.batch_transfer_sync(session, [at], [peer.buffer], [100], TransferOpcode.Write, None, "tcp") == 0
    ids = [
        engine.batch_transfer_async_write(session, [at], [peer.buffer], [100], **hint),
        engine.batch_transfer_async_read(session, [at], [peer.buffer], [100], **hint),
        engine.batch_transfer_async(session, [at], [peer.buffer], [100], TransferOpcode.Read, **hint),
    ]
    assert all(ids) and engine.get_batch_transfer_status(ids) == 0
    submitted = engine.transfer_submit_write(session, at, peer.buffer, 100, **hint)
    wait_until(lambda: engine.transfer_check_status(submitted) == 1, "the write is done")
    other = numpy.zeros(100, dtype=numpy.uint8)
    assert engine.register_memory(other.ctypes.data, 100, location="cpu:0") == 0
    assert engine.batch_unregister_memory([other.ctypes.data]) == 0
    assert isinstance(json.loads(engine.get_local_topology()), dict) and isinstance(json.loads(engine.get_local_topology("mlx5_0")), dict)


def test_the_local_topology_names_the_near_and_the_other_cards_of_each_numa_node() -> None:
    class Engine(TransferEngine):
        def _nics(self) -> list[tuple[str, int]]:
            return [("erdma_0", 0), ("erdma_1", 1), ("rxe0", -1)]

    engine = Engine()
    assert json.loads(engine.get_local_topology()) == {
        "cpu:0": [["erdma_0", "rxe0"], ["erdma_1"]],
        "cpu:1": [["erdma_1", "rxe0"], ["erdma_0"]],
    }
    assert json.loads(engine.get_local_topology("erdma_1")) == {"cpu:0": [[], ["erdma_1"]], "cpu:1": [["erdma_1"], []]}
    assert json.loads(TransferEngine().get_local_topology()) == {"cpu:0": [[], []]}


def test_initialize_ext_takes_the_kind_of_the_metadata_server_last(tmp_path, peer, capfd) -> None:
    engine = TransferEngine()
    assert engine.initialize_ext("127.0.0.1", "", "tcp", "", "ectd") == -1
    assert "did you mean 'etcd'?" in capfd.readouterr().err
    assert engine.initialize_ext("127.0.0.1", "", "tcp", "", "P2PHANDSHAKE") == 0
    assert engine.send_probe(f"127.0.0.1:{peer.port}") == 0
    url, program = _http(tmp_path)
    try:
        named = TransferEngine()
        name = f"127.0.0.1:{free_port()}"
        assert named.initialize_ext(name, url.removeprefix("http://"), "tcp", "", "http") == 0
        asker = TransferEngine()
        assert asker.initialize("127.0.0.1", url, "tcp", "") == 0
        assert asker.send_probe(name) == 0
    finally:
        program.kill()


def test_transfers_from_many_threads_arrive_whole(engine, peer) -> None:
    session, share, failures = f"127.0.0.1:{peer.port}", SIZE // 64, []
    array = numpy.zeros(SIZE, dtype=numpy.uint8)
    assert engine.register_memory(array.ctypes.data, array.nbytes) == 0

    def work(i: int) -> None:
        part = array[i * share : (i + 1) * share]
        at, there = part.ctypes.data, peer.buffer + i * share
        pieces = [at + k * 4096 for k in range(share // 4096)], [there + k * 4096 for k in range(share // 4096)], [4096] * (share // 4096)
        for turn in range(5):
            part[:] = (i + turn) % 251 + 1
            if engine.batch_transfer_sync_write(session, *pieces) != 0:
                failures.append((i, "write"))
            part[:] = 0
            if engine.batch_transfer_sync_read(session, *pieces) != 0 or not (part == (i + turn) % 251 + 1).all():
                failures.append((i, "read"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert engine.unregister_memory(array.ctypes.data) == 0
    assert failures == []


@pytest.mark.parametrize("operation", ["read", "write"])
def test_transfer_engine_bench_takes_the_flags_that_users_know(tmp_path, operation) -> None:
    common = ["-metadata_server=P2PHANDSHAKE", "--protocol", "tcp", "-local_server_name", "127.0.0.1", "--buffer_size=16777216", "-backend=classic"]
    bench = str(BIN / "transfer_engine_bench")
    target = Program([bench, "--mode=target", *common], tmp_path / "target.log")
    try:
        target.ready(lambda: "--segment_id=" in target.log.read_text())
        session = target.log.read_text().partition("--segment_id=")[2].split()[0]
        flags = [f"--segment_id={session}", f"--operation={operation}", "--threads=4", "--block_size=65536", "--batch_size=16", "--duration=1"]
        report = ["--device_name=", "--report_unit=MiB", "--report_precision=3", "--auto_discovery=false", "--nic_priority_matrix="]
        done = subprocess.run([bench, "--mode=initiator", *common, *flags, *report], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("Test completed: "))
        numbers = dict(part.rsplit(" ", 1) if part.startswith(("duration", "batch")) else part.split(" ", 1) for part in line[16:].split(", "))
        speed, unit = numbers["throughput"].split()
        assert float(numbers["duration"]) >= 1 and int(numbers["batch count"]) > 0
        assert unit == "MiB/s" and float(speed) > 1 and len(speed.partition(".")[2]) == 3
        refused = subprocess.run([bench, "--mode=initiator", *common, "--report_unit=furlongs"], capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 2
    finally:
        target.kill()
