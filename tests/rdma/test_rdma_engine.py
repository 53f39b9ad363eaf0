"""mooncake.engine over RDMA: one engine reads and writes the memory of another; and the benchmark program of that kind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import numpy
from compat_programs import BIN, MIB, Program
from mooncake.engine import TransferEngine
from rdma_programs import GENEROUS_SECONDS, OWNER_NICS, PATIENT, USER_NICS, names, received, sent

SIZE = 4 * MIB
PACKET = 1024

TARGET = """
import signal, sys
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "rdma", sys.argv[1]) == 0
buffer = engine.allocate_managed_buffer(int(sys.argv[2]))
assert buffer > 0
print("ready", engine.get_rpc_port(), buffer, flush=True)
signal.sigwait([signal.SIGTERM])
"""


def moved(counter, start: list[int]) -> int:
    """Packets since `start`, over all NICs of this side."""
    return sum(counter(nic) for nic in names(USER_NICS)) - sum(start)


def test_bytes_written_to_a_peer_over_its_nics_are_read_back(tmp_path) -> None:
    log = tmp_path / "target.log"
    target = Program([sys.executable, "-c", TARGET, OWNER_NICS, str(SIZE)], log, PATIENT)
    try:
        target.ready(lambda: "ready" in log.read_text() and log.read_text().endswith("\n"))
        port, buffer = (int(word) for word in re.search(r"ready (\d+) (\d+)", log.read_text()).groups())
        engine = TransferEngine()
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "rdma", USER_NICS) == 0
        local = numpy.frombuffer(bytearray(os.urandom(SIZE)), dtype=numpy.uint8)
        expected, at, session = local.copy(), local.ctypes.data, f"127.0.0.1:{port}"
        assert engine.register_memory(at, SIZE) == 0
        start = [sent(nic) for nic in names(USER_NICS)]
        assert engine.transfer_sync_write(session, at, buffer, SIZE) == 0
        assert moved(sent, start) >= SIZE // PACKET // 4, "the NICs have carried it"
        local[:] = 0
        start = [received(nic) for nic in names(USER_NICS)]
        assert engine.transfer_sync_read(session, at, buffer, SIZE) == 0
        assert moved(received, start) >= SIZE // PACKET // 4, "the NICs have carried it"
        assert (local == expected).all()
        offsets = [i * 10_000 for i in range(50)]
        local[:] = 0
        assert engine.batch_transfer_sync_read(session, [at + i for i in offsets], [buffer + i for i in offsets], [5000] * 50) == 0
        assert all((local[i : i + 5000] == expected[i : i + 5000]).all() and not local[i + 5000 : i + 10_000].any() for i in offsets)
        assert engine.unregister_memory(at) == 0
    finally:
        target.kill()


def test_the_benchmark_program_moves_bytes_between_two_processes(tmp_path) -> None:
    program, log = str(BIN / "transfer_engine_bench"), tmp_path / "target.log"
    common = ["--protocol=rdma", "--metadata_server=P2PHANDSHAKE", "--local_server_name=127.0.0.1", "--buffer_size=16777216"]
    target = Program([program, "--mode=target", f"--device_name={OWNER_NICS}", *common], log, PATIENT)
    try:
        target.ready(lambda: re.search(r"--segment_id=\S+\n", log.read_text()))
        segment = re.search(r"--segment_id=(\S+)", log.read_text()).group(1)
        for operation, counter in (("write", sent), ("read", received)):
            start = [counter(nic) for nic in names(USER_NICS)]
            argv = [program, "--mode=initiator", f"--device_name={USER_NICS}", *common, f"--segment_id={segment}", f"--operation={operation}"]
            argv += ["--block_size=65536", "--batch_size=8", "--threads=1", "--duration=2"]
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=GENEROUS_SECONDS, env={**os.environ, **PATIENT}, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert re.search(r"[\d.]+ (GB|MB|KB)/s", done.stdout), done.stdout
            assert moved(counter, start) > 100, "the NICs have carried it"
    finally:
        target.send(signal.SIGTERM)
        assert target.process.wait(GENEROUS_SECONDS) == 0
