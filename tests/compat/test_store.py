"""put, get, exist, remove and their batches against a real master and a second process that holds the data."""

from __future__ import annotations

import ctypes
import os
import time

import numpy
import pytest
from compat_programs import MIB, wait_until
from mooncake.store import BufferHandle, MooncakeHostMemAllocator, ReplicateConfig

NOT_FOUND = -704
INVALID = -600
LEASED = -706


def address(array: numpy.ndarray) -> int:
    return array.ctypes.data


def test_a_value_comes_back_byte_for_byte(store) -> None:
    for size in (1, 7, 4096, 4097, 3 * MIB + 5):
        value = os.urandom(size)
        assert store.put(f"k{size}", value) == 0
        assert store.get(f"k{size}") == value
        assert store.get_size(f"k{size}") == size
        assert store.is_exist(f"k{size}") == 1


def test_a_miss_is_an_empty_value_and_never_an_error(store) -> None:
    assert store.get("none") == b""
    assert store.get_batch(["none", "nothing"]) == [b"", b""]
    assert store.get_buffer("none") is None
    assert store.is_exist("none") == 0
    assert store.get_size("none") == NOT_FOUND
    assert store.get_replica_desc("none") == []
    assert store.batch_get_replica_desc(["none"]) == {}


def test_put_again_keeps_the_first_value_and_upsert_replaces_it(store) -> None:
    assert store.put("k", b"first") == 0
    assert store.put("k", b"second") == 0
    assert store.get("k") == b"first"
    assert store.upsert("k", b"the third") == 0
    assert store.get("k") == b"the third"
    assert store.upsert("new", b"made") == 0
    assert store.get("new") == b"made"


@pytest.mark.parametrize(
    "make",
    [
        lambda data: data,
        bytearray,
        memoryview,
        lambda data: memoryview(data).cast("I"),
        lambda data: numpy.frombuffer(data, dtype=numpy.float64),
        lambda data: numpy.frombuffer(data, dtype=numpy.uint16).reshape(8, -1),
        lambda data: numpy.asfortranarray(numpy.frombuffer(data, dtype=numpy.uint8).reshape(32, -1)),
        lambda data: memoryview(data[::-1])[::-1],
    ],
    ids=["bytes", "bytearray", "memoryview", "items", "float64", "matrix", "fortran", "reversed"],
)
def test_any_buffer_is_stored_whole_in_c_order(store, make) -> None:
    data = os.urandom(4096)
    assert store.put("k", make(data)) == 0
    assert store.get("k") == data


def test_a_strided_view_is_stored_without_its_gaps(store) -> None:
    data = numpy.arange(1000, dtype=numpy.int32)
    assert store.put("k", data[::3]) == 0
    assert store.get("k") == data[::3].tobytes()


def test_batches_align_with_their_keys_duplicates_included(store) -> None:
    assert store.put_batch(["a", "b", "a"], [b"1", b"22", b"333"]) == 0
    assert store.get_batch(["b", "a", "none", "a"]) == [b"22", b"1", b"", b"1"]
    assert store.batch_is_exist(["a", "none", "b", "a"]) == [1, 0, 1, 1]
    assert store.batch_is_exist([]) == []
    assert store.get_batch([]) == []
    assert store.put_batch(["a"], []) == INVALID
    assert store.upsert_batch(["a", "b"], [b"x", b"y"]) == 0
    assert store.get_batch(["a", "b"]) == [b"x", b"y"]


def test_parts_become_one_object(store) -> None:
    assert store.put_parts("k", b"abc", bytearray(b"def"), numpy.array([1], dtype=numpy.uint8)) == 0
    assert store.get("k") == b"abcdef\x01"
    assert store.upsert_parts("k", b"", b"new", config=ReplicateConfig()) == 0
    assert store.get("k") == b"new"
    assert store.put_parts("empty", b"") == 0
    assert store.is_exist("empty") == 0


def test_empty_keys_and_values_are_refused(store) -> None:
    config = ReplicateConfig()
    config.replica_num = 0
    assert store.put("", b"x") == INVALID
    assert store.put("k", b"") == INVALID
    assert store.put("k", b"x", config) == INVALID
    assert store.put_from("k", 0, 0) == 0
    assert store.put_from("k", 0, 10) == INVALID
    assert store.is_exist("k") == 0


def test_a_key_of_a_megabyte_gets_a_clear_answer_and_the_store_goes_on(store) -> None:
    long_key = "k" * MIB
    assert store.put(long_key, b"x") < 0
    assert store.get(long_key) == b""
    assert store.put("k", b"x") == 0
    assert store.put("schlüssel/鍵", b"unicode") == 0
    assert store.get("schlüssel/鍵") == b"unicode"


def test_memory_by_address_in_and_out(store) -> None:
    source = numpy.frombuffer(os.urandom(100_000), dtype=numpy.uint8)
    target = numpy.zeros(200_000, dtype=numpy.uint8)
    assert store.register_buffer(address(target), target.nbytes) == 0
    assert store.put_from("k", address(source), source.nbytes) == 0
    assert store.get_into("k", address(target), target.nbytes) == source.nbytes
    assert (target[: source.nbytes] == source).all()
    assert store.get_into("k", address(target), 10) == INVALID
    assert store.get_into("none", address(target), target.nbytes) == NOT_FOUND
    assert store.batch_put_from(["a", "b"], [address(source)] * 2, [10, 20]) == [0, 0]
    assert store.batch_get_into(["b", "none", "a"], [address(target)] * 3, [20, 20, 20]) == [20, NOT_FOUND, 10]
    assert store.batch_upsert_from(["a"], [address(source)], [30]) == [0]
    assert store.get_size("a") == 30
    assert store.upsert_from("b", address(source), 40) == 0
    assert store.put_from_with_metadata("m", address(source), address(source) + 100, 50, 8) == 0
    assert store.get("m") == source[100:108].tobytes() + source[:50].tobytes()
    assert store.unregister_buffer(address(target)) == 0


def test_blocks_of_many_pieces_as_vllm_stores_them(store) -> None:
    blocks, pieces, piece = 24, 30, 9216
    source = numpy.frombuffer(os.urandom(blocks * pieces * piece), dtype=numpy.uint8)
    target = numpy.zeros_like(source)
    keys = [f"model@tp_rank:0@{i:032x}" for i in range(blocks)]
    # Pieces of one block lie far apart, as layers do.
    def table(array: numpy.ndarray) -> list[list[int]]:
        return [[address(array) + (layer * blocks + block) * piece for layer in range(pieces)] for block in range(blocks)]

    sizes = [[piece] * pieces for _ in range(blocks)]
    config = ReplicateConfig()
    config.group_ids = keys
    assert store.batch_put_from_multi_buffers(keys, table(source), sizes, config) == [0] * blocks
    assert store.batch_is_exist(keys) == [1] * blocks
    assert store.batch_get_into_multi_buffers(keys, table(target), sizes) == [pieces * piece] * blocks
    assert (source == target).all()
    found = store.batch_get_replica_desc(keys)
    assert list(found) == keys
    assert all(replica.is_memory_replica() and not replica.is_disk_replica() for replicas in found.values() for replica in replicas)
    short = [[*row[:-1], piece - 1] for row in sizes]
    assert store.batch_get_into_multi_buffers(keys, table(target), short) == [INVALID] * blocks


def test_one_bad_entry_of_a_batch_leaves_the_others_alone(store) -> None:
    source = numpy.frombuffer(os.urandom(100), dtype=numpy.uint8)
    at = address(source)
    assert store.batch_put_from_multi_buffers(["a", "b", "", "d"], [[at], [0], [at], [at, at]], [[10], [10], [10], [5]]) == [0, INVALID, INVALID, INVALID]
    assert store.batch_get_into(["a", "a"], [0, at], [100, 100]) == [INVALID, 10]


def test_lists_of_different_lengths_give_a_code_for_each_key(store) -> None:
    assert store.batch_put_from(["a", "b"], [1], [1, 2]) == [INVALID, INVALID]
    assert store.batch_get_into(["a", "b"], [], []) == [INVALID, INVALID]
    assert store.batch_put_from_multi_buffers(["a"], [[1]], []) == [INVALID]
    assert store.batch_get_into_multi_buffer_ranges(["a"], [[1]], [[1]], []) == [INVALID]


def test_ranges_of_objects(store) -> None:
    value = os.urandom(1 * MIB)
    assert store.put("k", value) == 0
    target = numpy.zeros(4096, dtype=numpy.uint8)
    at = address(target)
    counts = store.batch_get_into_multi_buffer_ranges(["k", "none"], [[at, at + 100], [at]], [[100, 1000], [1]], [[300_000, 5], [0]])
    assert counts == [1100, NOT_FOUND]
    assert target[:1100].tobytes() == value[300_000:300_100] + value[5:1005]
    assert store.batch_get_into_multi_buffer_ranges(["k"], [[at]], [[10]], [[len(value) - 5]])[0] < 0
    answer = store.get_into_ranges([at], [["k", "none"]], [[[0, 10], [0]]], [[[7, 100], [0]]], [[[10, 20], [4]]])
    assert answer == [[[10, 20], [NOT_FOUND]]]
    assert target[:30].tobytes() == value[7:17] + value[100:120]


def test_a_buffer_handle_outlives_its_object(store) -> None:
    value = os.urandom(10_000)
    assert store.put("k", value) == 0
    handle = store.get_buffer("k")
    assert isinstance(handle, BufferHandle) and handle.size() == len(handle) == len(value)
    assert ctypes.string_at(handle.ptr(), 16) == value[:16]
    assert store.remove("k", force=True) == 0
    view = memoryview(handle)
    del handle
    assert bytes(view) == value
    assert [None if h is None else bytes(h) for h in store.batch_get_buffer(["none", "k"])] == [None, None]


def test_remove_answers_for_what_it_found(store) -> None:
    assert store.put_batch([f"r{i}" for i in range(6)], [b"x"] * 6) == 0
    assert store.remove("none") == NOT_FOUND
    assert store.remove("r0", True) == 0
    assert store.is_exist("r0") == 0
    assert store.batch_remove(["r1", "none", "r2"], force=True) == [0, NOT_FOUND, 0]
    assert store.remove_by_regex("^r[34]$", force=True) == 2
    assert store.remove_all(force=True) == 1
    assert store.batch_is_exist([f"r{i}" for i in range(6)]) == [0] * 6


def test_a_bad_regex_is_an_error_not_a_removal(store) -> None:
    assert store.put("k", b"x") == 0
    assert store.remove_by_regex("([", force=True) < 0
    assert store.is_exist("k") == 1


def test_what_a_reader_leased_is_removed_by_force_or_later(store) -> None:
    assert store.put("k", b"x") == 0
    assert store.get("k") == b"x"
    assert store.remove("k") == LEASED
    wait_until(lambda: store.remove("k") == 0, "the lease has run out", 5)
    assert store.is_exist("k") == 0


def test_a_preferred_segment_is_where_the_object_lies(store, other_node) -> None:
    config = ReplicateConfig()
    config.preferred_segment = other_node.hostname
    assert store.put("k", b"x" * 100, config) == 0
    (replica,) = store.get_replica_desc("k")
    where = replica.get_memory_descriptor().buffer_descriptor
    assert (where.transport_endpoint, where.size) == (other_node.hostname, 100)
    with pytest.raises(ValueError):
        replica.get_disk_descriptor()


def test_a_full_pool_answers_no_available_handle(master, store, other_node) -> None:
    config = ReplicateConfig()
    config.with_hard_pin = True
    block = numpy.zeros(16 * MIB, dtype=numpy.uint8)
    codes = []
    for i in range(12):
        codes.append(store.put_from(f"k{i}", address(block), block.nbytes, config))
    assert codes[0] == 0 and codes[-1] == -200 and set(codes) == {0, -200}
    assert store.remove_all(force=True) == codes.count(0)
    wait_until(lambda: store.put_from("again", address(block), block.nbytes) == 0, "space is reused after its removal")


WRONG_CALLS = [
    lambda s: s.put(1, b"x"),
    lambda s: s.put(b"k", b"x"),
    lambda s: s.put("k", "text"),
    lambda s: s.put("k", None),
    lambda s: s.put("k", 5),
    lambda s: s.put("k", b"x", None),
    lambda s: s.put("\ud800", b"x"),
    lambda s: s.put_batch("ab", [b"x", b"y"]),
    lambda s: s.put_batch(["a"], b"x"),
    lambda s: s.put_parts("k", "text"),
    lambda s: s.batch_is_exist("abc"),
    lambda s: s.batch_is_exist([1]),
    lambda s: s.batch_is_exist(None),
    lambda s: s.batch_is_exist({"a": 1}),
    lambda s: s.batch_put_from(["a"], ["b"], [1]),
    lambda s: s.batch_put_from(["a"], [1.5], [1]),
    lambda s: s.batch_put_from(["a"], [-1], [1]),
    lambda s: s.batch_put_from(["a"], [1 << 70], [1]),
    lambda s: s.batch_put_from_multi_buffers(["a"], [1], [[1]]),
    lambda s: s.get_into("k", "1", 1),
    lambda s: s.get(),
    lambda s: s.put("k", b"x", nonsense=1),
]


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_types_raise_type_error_and_the_store_goes_on(store, call) -> None:
    with pytest.raises(TypeError):
        call(store)
    assert store.put("k", b"x") == 0


@pytest.mark.parametrize("bad", ["text", 7, None, [1.5], [-1], [1 << 64], [[1]]])
def test_a_bad_row_of_pieces_is_named_and_nothing_is_stored(store, bad: object) -> None:
    source = numpy.frombuffer(os.urandom(16), dtype=numpy.uint8)
    good, keys = [address(source)], ["a", "b", "c"]
    with pytest.raises(TypeError, match=r"all_buffer_ptrs\[1\]"):
        store.batch_put_from_multi_buffers(keys, [good, bad, good], [[16]] * 3)
    with pytest.raises(TypeError, match=r"all_sizes\[2\]"):
        store.batch_get_into_multi_buffers(keys, [good] * 3, [[16], [16], bad])
    with pytest.raises(TypeError):
        store.batch_put_from_multi_buffers(keys, "abc", [[16]] * 3)
    assert store.batch_is_exist(keys) == [0, 0, 0]


@pytest.mark.parametrize("number", [0, 1, (1 << 30) - 1, 1 << 30, (1 << 60) - 1, 1 << 60, (1 << 64) - 1])
def test_numbers_of_every_length_are_read_rightly(store, number: int) -> None:
    # Nothing is touched: a size that differs from the object's is refused.
    assert store.put("k", b"x" * 16) == 0
    source = numpy.frombuffer(os.urandom(16), dtype=numpy.uint8)
    assert store.batch_get_into_multi_buffers(["k"], [[address(source)]], [[number]]) == [INVALID]
    assert store.batch_get_into_multi_buffers(["k"], [[address(source)]], [[16]]) == [16]


def test_integers_of_numpy_and_tuples_are_fine(store) -> None:
    source = numpy.frombuffer(os.urandom(10), dtype=numpy.uint8)
    assert store.batch_put_from(("a",), numpy.array([address(source)], dtype=numpy.uint64), (numpy.int32(10),)) == [0]
    assert store.batch_is_exist(("a",)) == [1]


def test_host_memory_is_given_and_taken_back(store) -> None:
    allocator = MooncakeHostMemAllocator()
    memory = allocator.alloc(MIB)
    assert memory % 4096 == 0 and memory > 0
    ctypes.memset(memory, 7, MIB)
    assert store.register_buffer(memory, MIB) == 0
    assert store.put_from("k", memory, 100) == 0
    assert store.get("k") == b"\x07" * 100
    assert store.unregister_buffer(memory) == 0
    assert allocator.free(memory) == 0
    assert allocator.free(memory) == INVALID
    assert allocator.alloc(0) == 0
    assert allocator.alloc(1 << 60) == 0


def test_values_put_by_one_process_are_read_by_another(master, store) -> None:
    from compat_programs import run_python

    assert store.put("from here", b"hello") == 0
    code = (
        "from mooncake.store import MooncakeDistributedStore as S; s = S(); "
        f"assert s.setup('127.0.0.1', 'P2PHANDSHAKE', 0, {MIB}, 'tcp', '', '{master.address}') == 0; "
        "print(s.get('from here')); print(s.put('from there', b'world')); s.close()"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["b'hello'", "0"]
    assert store.get("from there") == b"world"


def test_setup_and_close_take_time_only_as_long_as_needed(master) -> None:
    from compat_programs import set_up

    start = time.monotonic()
    store = set_up(master.address, segment=16 * MIB)
    store.close()
    assert time.monotonic() - start < 5
