"""The transfer engine with device memory on either side, between two processes of this host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from paged import busy  # noqa: E402

GPUS = torch.cuda.device_count()
BYTES = 8 << 20

# Registers memory of every device and of the host, filled with 1; fills it again, with what it is told, and checks it.
PEER = """
import sys, torch
from mooncake.engine import TransferEngine
engine = TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
places = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] + [torch.device("cpu")]
memories = [torch.ones({bytes}, dtype=torch.uint8, device=place) for place in places]
for memory in memories:
    assert engine.register_memory(memory.data_ptr(), memory.numel()) == 0
torch.cuda.synchronize()
print(engine.get_rpc_port(), *[memory.data_ptr() for memory in memories], flush=True)
for line in sys.stdin:
    index, value = map(int, line.split())
    print(int((memories[index] != value).sum()), flush=True)
"""


class Peer:
    """The other process. Its memories are those of its devices, then the host's."""

    def __init__(self) -> None:
        argv = [sys.executable, "-c", PEER.format(bytes=BYTES)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        assert words, "the peer did not start: its output is above"
        self.session, self.addresses = f"127.0.0.1:{words[0]}", [int(word) for word in words[1:]]

    def differing(self, index: int, value: int) -> int:
        """How many bytes of one memory are not this value."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{index} {value}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    started = Peer()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def engine() -> Iterator[object]:
    from mooncake.engine import TransferEngine

    made = TransferEngine()
    assert made.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    yield made


@pytest.fixture
def memory(engine, request: pytest.FixtureRequest) -> Iterator[torch.Tensor]:
    """Registered memory on the device that the test asks for."""
    made = torch.zeros(BYTES, dtype=torch.uint8, device=request.param)
    assert engine.register_memory(made.data_ptr(), made.numel()) == 0
    yield made
    assert engine.unregister_memory(made.data_ptr()) == 0


PLACES = [*(f"cuda:{index}" for index in range(GPUS)), "cpu"]


@pytest.mark.parametrize("memory", PLACES, indirect=True)
@pytest.mark.parametrize("remote", range(len(PLACES)), ids=[f"peer's {place}" for place in PLACES])
def test_bytes_are_written_and_read_back_between_any_two_memories(engine, peer: Peer, memory: torch.Tensor, remote: int) -> None:
    value = 2 + remote
    memory.fill_(value)
    assert engine.transfer_sync_write(peer.session, memory.data_ptr(), peer.addresses[remote], BYTES) == 0
    assert peer.differing(remote, value) == 0
    memory.zero_()
    assert engine.transfer_sync_read(peer.session, memory.data_ptr(), peer.addresses[remote], BYTES) == 0
    assert int((memory != value).sum()) == 0


@pytest.mark.parametrize("memory", PLACES[:1], indirect=True)
def test_many_small_pieces_are_one_batch(engine, peer: Peer, memory: torch.Tensor) -> None:
    memory.random_(0, 256)
    expected = memory.clone()
    pieces = range(0, BYTES, 8192)
    sources = [memory.data_ptr() + at for at in pieces]
    targets = [peer.addresses[0] + at for at in reversed(pieces)]
    assert engine.batch_transfer_sync_write(peer.session, sources, targets, [8192] * len(pieces)) == 0
    memory.zero_()
    assert engine.batch_transfer_sync_read(peer.session, sources, targets, [8192] * len(pieces)) == 0
    assert torch.equal(memory, expected)


@pytest.mark.parametrize("memory", PLACES[:1], indirect=True)
def test_a_transfer_comes_after_the_stream_that_it_is_given(engine, peer: Peer, memory: torch.Tensor) -> None:
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for turn in (11, 12, 13):
        with torch.cuda.stream(side):
            busy(memory.device)
            memory.fill_(turn)
        assert engine.transfer_write_on_cuda(peer.session, memory.data_ptr(), peer.addresses[0], BYTES, side.cuda_stream) == 0
        assert peer.differing(0, turn) == 0
    memory.zero_()
    torch.cuda.synchronize()
    addresses = [memory.data_ptr()], [peer.addresses[0]], [BYTES]
    assert engine.batch_transfer_read_on_cuda(peer.session, *addresses, stream_ptr=side.cuda_stream) == 0
    assert int((memory != 13).sum()) == 0


@pytest.mark.parametrize("memory", PLACES[:1], indirect=True)
def test_memory_that_the_peer_did_not_register_is_refused(engine, peer: Peer, memory: torch.Tensor) -> None:
    assert engine.transfer_sync_write(peer.session, memory.data_ptr(), peer.addresses[0] + 1, BYTES) == -1
    assert engine.transfer_sync_write(peer.session, memory.data_ptr(), peer.addresses[0], BYTES) == 0


def test_a_peer_that_dies_is_an_error_and_others_go_on(engine, peer: Peer) -> None:
    other = Peer()
    made = torch.full((BYTES,), 5, dtype=torch.uint8, device="cuda")
    assert engine.register_memory(made.data_ptr(), made.numel()) == 0
    assert engine.transfer_sync_write(other.session, made.data_ptr(), other.addresses[0], BYTES) == 0
    other.stop()
    assert engine.transfer_sync_write(other.session, made.data_ptr(), other.addresses[0], BYTES) == -1
    assert engine.transfer_sync_write(peer.session, made.data_ptr(), peer.addresses[0], BYTES) == 0
    assert engine.unregister_memory(made.data_ptr()) == 0
