"""Objects over two NICs: the bytes, the NICs, the path, and what it took."""

from __future__ import annotations

import os

import numpy
import pytest
from compat_programs import MIB, wait_until
from mooncake.store import ReplicateConfig
from rdma_programs import GENEROUS_SECONDS, USER_NICS, names, received, sent, told_paths

PACKET = 1024  # bytes of payload that soft-RoCE puts into a packet, at an MTU of 1500


@pytest.mark.parametrize("size", [1, 4096, 256 * 1024 - 1, 256 * 1024 + 1, 3 * MIB + 5])
def test_an_object_comes_back_as_it_was_put(store, size) -> None:
    value = os.urandom(size)
    assert store.put("key", value) == 0
    assert store.get("key") == value
    assert bytes(store.get_buffer("key")) == value


def test_a_large_object_goes_over_all_nics_in_both_directions(store) -> None:
    nics, size = names(USER_NICS), 8 * MIB
    value = os.urandom(size)
    least = size // PACKET // len(nics) // 2  # packets: half of a fair share
    before = [sent(nic) for nic in nics]
    assert store.put("large", value) == 0
    assert all(sent(nic) - start >= least for nic, start in zip(nics, before, strict=True)), [sent(nic) for nic in nics]
    before = [received(nic) for nic in nics]
    assert store.get("large") == value
    assert all(received(nic) - start >= least for nic, start in zip(nics, before, strict=True)), [received(nic) for nic in nics]


def test_pieces_of_registered_memory_are_gathered_and_scattered(store) -> None:
    blocks, pieces, length = 3, 30, 8192
    source = numpy.frombuffer(bytearray(os.urandom(blocks * pieces * length)), dtype=numpy.uint8)
    target = numpy.zeros_like(source)
    assert store.register_buffer(source.ctypes.data, source.nbytes) == 0
    assert store.register_buffer(target.ctypes.data, target.nbytes) == 0
    # The pieces of a block lie one block apart, as layers of a KV cache do.
    where = [[(piece * blocks + block) * length for piece in range(pieces)] for block in range(blocks)]
    keys = [f"block {block}" for block in range(blocks)]
    lengths = [[length] * pieces] * blocks

    def at(array: numpy.ndarray) -> list[list[int]]:
        return [[array.ctypes.data + offset for offset in offsets] for offsets in where]

    try:
        assert store.batch_put_from_multi_buffers(keys, at(source), lengths, ReplicateConfig()) == [0] * blocks
        assert store.batch_get_into_multi_buffers(keys, at(target), lengths) == [pieces * length] * blocks
        assert (target == source).all()
        assert store.get(keys[1]) == b"".join(source[offset : offset + length].tobytes() for offset in where[1])
    finally:
        assert store.unregister_buffer(source.ctypes.data) == 0
        assert store.unregister_buffer(target.ctypes.data) == 0


def test_memory_that_is_not_registered_is_served_too(store) -> None:
    source = numpy.frombuffer(bytearray(os.urandom(2 * MIB + 3)), dtype=numpy.uint8)
    target = numpy.zeros_like(source)
    assert store.put_from("plain", source.ctypes.data, source.nbytes) == 0
    assert store.get_into("plain", target.ctypes.data, target.nbytes) == source.nbytes
    assert (target == source).all()


def test_ranges_of_an_object_are_read(store) -> None:
    value = os.urandom(MIB)
    assert store.put("ranged", value) == 0
    target = numpy.zeros(3000, dtype=numpy.uint8)
    found = store.batch_get_into_multi_buffer_ranges(["ranged"], [[target.ctypes.data]], [[3000]], [[500_001]])
    assert found == [3000]
    assert target.tobytes() == value[500_001:503_001]


def test_a_second_value_and_a_removal_are_seen(store) -> None:
    assert store.put("key", b"first" * 1000) == 0
    assert store.upsert("key", b"second" * 2000) == 0
    assert store.get("key") == b"second" * 2000
    assert store.remove("key", force=True) == 0
    assert store.get("key") == b""


def test_status_tells_that_the_path_is_rdma(store, master) -> None:
    value = os.urandom(MIB)
    assert store.put("told", value) == 0
    assert store.get("told") == value
    wait_until(lambda: told_paths(master, store), "the node has told its paths", GENEROUS_SECONDS)
    paths = told_paths(master, store)
    assert list(paths) == ["rdma"]
    assert paths["rdma"]["written_bytes"] >= MIB and paths["rdma"]["read_bytes"] >= MIB
    assert paths["rdma"]["failures"] == 0
