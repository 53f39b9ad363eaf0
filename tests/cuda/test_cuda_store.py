"""Device memory by address through put and get: bit for bit, from every device, thread and stream, and with clear errors."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from pathlib import Path

import pytest
from compat_programs import MIB, run_python, set_up, wait_until

torch = pytest.importorskip("torch")

from paged import PagedCache, busy, get, put  # noqa: E402

NOT_FOUND = -704
INVALID = -600
GPUS = [f"cuda:{index}" for index in range(torch.cuda.device_count())]


@pytest.mark.parametrize("piece_bytes", [16, 1000, 4096, 32768, 98304, 600_001])
@pytest.mark.parametrize("registered", [True, False], ids=["registered", "not registered"])
def test_a_paged_cache_comes_back_in_other_blocks_bit_for_bit(store, piece_bytes: int, registered: bool) -> None:
    cache = PagedCache("cuda", layers=5, blocks=12, piece_bytes=piece_bytes)
    cache.randomize()
    if registered:
        assert [store.register_buffer(layer.data_ptr(), layer.numel()) for layer in cache.layers] == [0] * 5
    keys = [f"block{number}" for number in range(6)]
    source, target = [3, 1, 5, 0, 4, 2], [11, 6, 10, 7, 9, 8]
    before = [cache.block(number).clone() for number in range(12)]
    assert put(store, keys, cache, source) == [0] * 6
    assert get(store, keys, cache, target) == [cache.block_bytes] * 6
    for one, other in zip(source, target, strict=True):
        assert torch.equal(cache.block(other), before[one])
        assert torch.equal(cache.block(one), before[one])
    if registered:
        assert [store.unregister_buffer(layer.data_ptr()) for layer in cache.layers] == [0] * 5


def test_a_large_batch_goes_in_parts(store) -> None:
    cache = PagedCache("cuda", layers=8, blocks=256, piece_bytes=32768)  # 64 MiB are put
    cache.randomize()
    order = torch.randperm(128).tolist()
    keys = [f"part{number}" for number in range(128)]
    keys[100] = keys[3]  # in another part; either of its values may be first
    assert put(store, keys, cache, order) == [0] * 128
    assert store.remove(keys[50]) == 0
    counts = get(store, keys, cache, [128 + block for block in order])
    assert counts[50] == NOT_FOUND and set(counts[:50] + counts[51:]) == {cache.block_bytes}
    for number in set(range(128)) - {3, 50, 100}:
        assert torch.equal(cache.block(order[number]), cache.block(128 + order[number]))
    first = cache.block(128 + order[3])
    assert torch.equal(first, cache.block(128 + order[100]))
    assert torch.equal(first, cache.block(order[3])) or torch.equal(first, cache.block(order[100]))


def test_a_row_of_the_wrong_type_ends_a_large_batch_and_is_named(store) -> None:
    cache = PagedCache("cuda", layers=8, blocks=128, piece_bytes=32768)
    keys = [f"typed{number}" for number in range(128)]
    addresses, sizes = [cache.addresses(block) for block in range(128)], [cache.sizes] * 128
    addresses[120] = ["not a number"]
    with pytest.raises(TypeError, match=r"all_buffer_ptrs\[120\]"):
        store.batch_put_from_multi_buffers(keys, addresses, sizes)
    assert store.is_exist(keys[0]) == 1 and store.is_exist(keys[127]) == 0


def test_wherever_the_pools_memory_is(any_store) -> None:
    cache = PagedCache("cuda", layers=8, blocks=64, piece_bytes=32768)
    cache.randomize()
    keys = [f"block{number}" for number in range(32)]
    for _ in range(3):  # the first may be staged, while the pool's memory is being pinned
        assert put(any_store, keys, cache, list(range(32))) == [0] * 32
        assert get(any_store, keys, cache, list(range(63, 31, -1))) == [cache.block_bytes] * 32
        assert all(torch.equal(cache.block(number), cache.block(63 - number)) for number in range(32))
        assert any_store.remove_all(force=True) == 32
        cache.randomize()


def device_bytes(master, store) -> dict[str, int]:
    """What the store's node has told the master of its device data: bytes "in_place" and "staged"."""
    with urllib.request.urlopen(f"http://127.0.0.1:{master.admin_port}/status", timeout=5) as answer:
        nodes = json.load(answer)["nodes"]
    return next(node["device_bytes"] for node in nodes if f"{node['host']}:{node['port']}" == store.get_hostname() or node["name"] == store.get_hostname())


def test_shared_memory_is_filled_in_place_once_it_is_pinned_and_other_peers_by_staging(store, master) -> None:
    cache = PagedCache("cuda", layers=8, blocks=8)
    cache.randomize()
    staged = os.environ.get("MOONPOOL_PATHS") == "tcp"
    moved = 0

    def went_right() -> bool:
        nonlocal moved
        moved += 1
        assert put(store, [f"k{moved}"], cache, [0]) == [0]
        assert get(store, [f"k{moved}"], cache, [1]) == [cache.block_bytes]
        assert torch.equal(cache.block(0), cache.block(1))
        return device_bytes(master, store)["staged" if staged else "in_place"] > 0

    wait_until(went_right, f"device data goes {'by staging memory' if staged else 'in place'}", 60)
    if staged:
        assert device_bytes(master, store)["in_place"] == 0


def test_what_a_gpu_put_the_host_reads_and_the_other_way_round(store) -> None:
    cache = PagedCache("cuda", layers=3, blocks=2)
    cache.randomize()
    assert put(store, ["device"], cache, [0]) == [0]
    assert store.get("device") == bytes(cache.block(0).cpu().flatten().tolist())
    value = os.urandom(cache.block_bytes)
    assert store.put("host", value) == 0
    assert get(store, ["host"], cache, [1]) == [cache.block_bytes]
    assert bytes(cache.block(1).cpu().flatten().tolist()) == value


def test_pieces_on_a_device_and_on_the_host_make_one_object(store) -> None:
    host, device = torch.randint(0, 256, (5000,), dtype=torch.uint8), torch.randint(0, 256, (7000,), dtype=torch.uint8, device="cuda")
    addresses = [host.data_ptr(), device.data_ptr(), host.data_ptr() + 3000]
    assert store.batch_put_from_multi_buffers(["mixed"], [addresses], [[3000, 7000, 2000]]) == [0]
    expected = torch.cat([host[:3000], device.cpu(), host[3000:]])
    assert store.get("mixed") == bytes(expected.tolist())
    back, front = torch.zeros(6000, dtype=torch.uint8, device="cuda"), torch.zeros(6000, dtype=torch.uint8)
    assert store.batch_get_into_multi_buffers(["mixed"], [[front.data_ptr(), back.data_ptr()]], [[6000, 6000]]) == [12000]
    assert torch.equal(torch.cat([front, back.cpu()]), expected)


def test_single_calls_and_ranges_take_device_memory(store) -> None:
    source, target = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, device="cuda"), torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    assert store.put_from("one", source.data_ptr(), source.numel()) == 0
    assert store.get_into("one", target.data_ptr(), target.numel()) == source.numel()
    assert torch.equal(source, target)
    assert store.upsert_from("one", target.data_ptr(), 1000) == 0
    assert store.get_size("one") == 1000
    assert store.put_from("whole", source.data_ptr(), source.numel()) == 0
    target.zero_()
    addresses, sizes, offsets = [target.data_ptr() + 10, target.data_ptr() + 100_000], [4097, 65536], [300_001, 7]
    assert store.batch_get_into_multi_buffer_ranges(["whole"], [addresses], [sizes], [offsets]) == [sum(sizes)]
    assert torch.equal(target[10 : 10 + 4097], source[300_001 : 300_001 + 4097])
    assert torch.equal(target[100_000 : 100_000 + 65536], source[7 : 7 + 65536])
    assert int(target[:10].sum()) == 0 == int(target[10 + 4097 : 100_000].sum())


def test_a_miss_and_a_wrong_size_leave_device_memory_as_it_was(store) -> None:
    cache = PagedCache("cuda")
    cache.randomize()
    before = cache.block(3).clone()
    assert get(store, ["none"], cache, [3]) == [NOT_FOUND]
    assert store.put("short", b"x" * 100) == 0
    assert get(store, ["short"], cache, [3]) == [INVALID]
    assert torch.equal(cache.block(3), before)


@pytest.mark.skipif(len(GPUS) < 2, reason="needs two GPUs")
def test_several_devices_in_one_process_and_in_one_batch(store) -> None:
    caches = [PagedCache(gpu, blocks=4) for gpu in GPUS]
    for cache in caches:
        cache.randomize()
    keys = [f"gpu{index}" for index in range(len(caches))]
    addresses, sizes = [cache.addresses(0) for cache in caches], [cache.sizes for cache in caches]
    assert store.batch_put_from_multi_buffers(keys, addresses, sizes) == [0] * len(keys)
    # Each reads what the device before it wrote.
    turned = keys[-1:] + keys[:-1]
    assert store.batch_get_into_multi_buffers(turned, [cache.addresses(1) for cache in caches], sizes) == [caches[0].block_bytes] * len(keys)
    for index, cache in enumerate(caches):
        assert torch.equal(cache.block(1).cpu(), caches[index - 1].block(0).cpu())
    # One object of pieces on both.
    first, second = caches[0].layers[0], caches[1].layers[0]
    assert store.batch_put_from_multi_buffers(["both"], [[first.data_ptr(), second.data_ptr()]], [[4096, 4096]]) == [0]
    assert store.get("both") == bytes(first[0, 0].tolist()) + bytes(second[0, 0].tolist())


@pytest.mark.skipif(len(GPUS) < 2, reason="needs two GPUs")
def test_the_devices_current_in_the_callers_thread_do_not_matter(store) -> None:
    cache = PagedCache(GPUS[1])
    cache.randomize()
    with torch.cuda.device(0):
        assert put(store, ["k"], cache, [0]) == [0]
        assert torch.cuda.current_device() == 0
    assert get(store, ["k"], cache, [1]) == [cache.block_bytes]
    assert torch.equal(cache.block(0), cache.block(1))


def test_threads_that_never_touched_cuda_may_call_at_the_same_time(store) -> None:
    caches = [PagedCache("cuda", blocks=8) for _ in range(4)]
    for cache in caches:
        cache.randomize()
    torch.cuda.synchronize()
    answers: list[list[int]] = [[] for _ in caches]

    def work(index: int) -> None:
        for turn in range(10):
            keys = [f"t{index}r{turn}b{block}" for block in range(4)]
            answers[index] += put(store, keys, caches[index], [0, 1, 2, 3])
            answers[index] += [count - caches[index].block_bytes for count in get(store, keys, caches[index], [4, 5, 6, 7])]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(caches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(set(codes) == {0} and len(codes) == 80 for codes in answers)
    for cache in caches:
        assert all(torch.equal(cache.block(block), cache.block(block + 4)) for block in range(4))


def test_work_queued_on_the_default_stream_comes_first(store) -> None:
    cache = PagedCache("cuda", layers=2)
    for turn in range(3):
        busy(cache.device)
        for layer in cache.layers:
            layer.fill_(turn + 1)  # queued behind the busy kernel: not done yet
        assert put(store, [f"turn{turn}"], cache, [0]) == [0]
        assert set(store.get(f"turn{turn}")) == {turn + 1}


def test_a_get_does_not_overtake_readers_queued_before_it(store) -> None:
    cache = PagedCache("cuda", layers=2)
    assert store.put("k", b"\x07" * cache.block_bytes) == 0
    for layer in cache.layers:
        layer.fill_(1)
    busy(cache.device)
    copies = [layer.clone() for layer in cache.layers]  # queued: reads the old bytes
    assert get(store, ["k"], cache, [0]) == [cache.block_bytes]
    assert all(int(copy.max()) == 1 for copy in copies)
    assert int(cache.block(0).min()) == 7


def test_other_streams_go_on_meanwhile(store) -> None:
    """Nothing synchronises the device: work on a stream of its own is still running when a put returns."""
    cache = PagedCache("cuda")
    cache.randomize()
    assert put(store, ["warm"], cache, [0]) == [0]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        busy(cache.device, 2000)
        event = torch.cuda.Event()
        event.record()
    assert put(store, ["k"], cache, [1]) == [0]
    assert not event.query()
    torch.cuda.synchronize()


VISIBLE = """
import sys
sys.path[:0] = {paths!r}
import torch
from paged import PagedCache, get, put
from compat_programs import set_up
assert torch.cuda.device_count() == 1
store = set_up({master!r}, segment=0)
cache = PagedCache("cuda:0")
cache.randomize()
assert put(store, ["visible"], cache, [0]) == [0]
assert get(store, ["visible"], cache, [1]) == [cache.block_bytes]
assert torch.equal(cache.block(0), cache.block(1))
store.close()
"""


@pytest.mark.parametrize("index", range(len(GPUS)))
def test_only_visible_devices_are_used(master, other_node, index: int) -> None:
    tests = Path(__file__).parents[1]
    code = VISIBLE.format(paths=[str(tests / "cuda"), str(tests / "compat")], master=master.address)
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(len(GPUS))))).split(",")[index]
    done = run_python(code, env={"CUDA_VISIBLE_DEVICES": visible}, timeout=100)
    assert done.returncode == 0, done.stderr


WITHOUT_CUDA = """
import sys
sys.path.insert(0, {compat!r})
from compat_programs import set_up
store = set_up({master!r}, segment=0)
print(store.register_buffer({address}, 4096))
store.close()
"""


def test_a_process_without_cuda_refuses_a_device_pointer_and_says_why(master, other_node) -> None:
    memory = torch.zeros(4096, dtype=torch.uint8, device="cuda")
    compat = str(Path(__file__).parents[1] / "compat")
    done = run_python(WITHOUT_CUDA.format(compat=compat, master=master.address, address=memory.data_ptr()))
    # Not a crash: an address that is no memory of that process is refused, and nothing there is read.
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert int(done.stdout) == INVALID
    assert "CUDA is missing" in done.stderr and f"{memory.data_ptr():#x}" in done.stderr


def test_a_store_opened_and_closed_again_and_again_leaves_no_device_memory_behind(master, other_node) -> None:
    cache = PagedCache("cuda")
    cache.randomize()

    def once() -> int:
        opened = set_up(master.address, segment=64 * MIB)
        assert put(opened, ["k"], cache, [0]) == [0]
        assert opened.remove_all(force=True) >= 1
        opened.close()
        torch.cuda.synchronize()
        return torch.cuda.mem_get_info()[0]

    once()
    free = once()
    for _ in range(5):
        last = once()
    assert last >= free - 16 * MIB
