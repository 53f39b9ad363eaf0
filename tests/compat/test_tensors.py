"""Torch tensors through the pool, on the CPU: any dtype and shape, bit for bit. Those on a GPU are in tests/cuda."""

from __future__ import annotations

import ctypes
import struct

import pytest
from compat_programs import run_python

torch = pytest.importorskip("torch")

from mooncake import _tensors  # noqa: E402
from mooncake.store import MooncakeDistributedStore, ReplicateConfig  # noqa: E402

NOT_FOUND = -704
INVALID = -600


# All but the quantized ones, whose scales are not in their bytes.
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype) and not str(value).startswith("torch.q")}, key=str)


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits of that type; of bool, random truth."""
    if dtype is torch.bool:
        return torch.randint(0, 2, shape).bool()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8).view(dtype)


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor  # torch rearranges no integers narrower than eight bits
    return bytes(plain.contiguous().view(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)


def test_the_types_of_a_kv_cache_are_among_those_tried() -> None:
    assert {torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.complex128} <= set(DTYPES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(store, dtype: torch.dtype) -> None:
    tensor = random_tensor(dtype, 3, 5, 8)
    assert store.put_tensor("t", tensor) == 0
    assert same(store.get_tensor("t"), tensor)
    memory = torch.zeros(4096, dtype=torch.uint8)
    assert same(store.get_tensor_into("t", memory.data_ptr(), memory.numel()), tensor)
    target = torch.zeros(tensor.shape, dtype=torch.uint8 if dtype is torch.bool else dtype).view(dtype)
    assert store.get_tensor_into_cuda("t", target) == 0
    assert same(target, tensor)


@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0, 7), (1,), (1, 1, 1), (70000,), (2,) * 10, (2,) * 11, (1,) * 64], ids=lambda shape: "x".join(map(str, shape)) or "scalar"
)
def test_every_shape_comes_back(store, shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape)
    assert store.put_tensor("t", tensor) == 0
    assert same(store.get_tensor("t"), tensor)
    target = torch.full(shape, -1.0)
    assert store.get_tensor_into_cuda("t", target) == 0
    assert same(target, tensor)


@pytest.mark.parametrize(
    "make",
    [
        lambda base: base.t(),
        lambda base: base[::2, 1:],
        lambda base: base[5:],
        lambda base: base.expand(3, *base.shape),
        lambda base: torch.view_as_complex(base.view(20, 15, 2)).conj(),
        lambda base: torch.view_as_complex(base.view(20, 15, 2)).conj().imag,
        lambda base: base.clone().requires_grad_(),
        lambda base: torch.nn.Parameter(base.clone()),
    ],
    ids=["transposed", "strided", "offset", "expanded", "conjugated", "negated", "with gradient", "parameter"],
)
def test_what_is_not_plain_memory_is_stored_as_what_it_means(store, make) -> None:
    tensor = make(torch.rand(20, 30))
    assert store.put_tensor("t", tensor) == 0
    found = store.get_tensor("t")
    assert same(found, tensor.detach().resolve_conj().resolve_neg())
    assert found.is_contiguous()


def test_a_tensor_got_is_the_callers_own(store) -> None:
    large = torch.zeros(1 << 20)  # 4 MiB: a pinned look at the pool's memory underneath
    small = torch.zeros(8)
    for key, tensor in (("large", large), ("small", small)):
        assert store.put_tensor(key, tensor) == 0
        store.get_tensor(key).fill_(7)
        assert same(store.get_tensor(key), tensor)


def test_put_keeps_the_first_tensor_and_upsert_replaces_it_with_another_shape_and_type(store) -> None:
    first, second = torch.rand(4, 4), torch.arange(7, dtype=torch.int16)
    assert store.put_tensor("t", first) == 0
    assert store.put_tensor("t", second) == 0
    assert same(store.get_tensor("t"), first)
    assert store.upsert_tensor("t", second) == 0
    assert same(store.get_tensor("t"), second)
    assert store.upsert_pub_tensor("t", first, ReplicateConfig()) == 0
    assert same(store.get_tensor("t"), first)


def test_pub_takes_a_policy_and_a_bad_one_is_refused(store) -> None:
    tensor = torch.rand(10)
    config = ReplicateConfig()
    config.with_hard_pin = True
    assert store.pub_tensor("t", tensor, config) == 0
    assert same(store.get_tensor("t"), tensor)
    config.replica_num = 0
    assert store.pub_tensor("u", tensor, config) == INVALID
    assert store.batch_pub_tensor(["u", "v"], [tensor, tensor], config) == [INVALID, INVALID]
    config.replica_num, config.group_ids = 1, ["g"]
    assert store.batch_pub_tensor(["u", "v"], [tensor, tensor], config) == [INVALID, INVALID]


def test_batches_answer_per_key_and_a_wrong_entry_leaves_the_others_alone(store) -> None:
    one, two = torch.rand(3), torch.randint(0, 9, (300, 1000))
    sparse = torch.eye(3).to_sparse()
    meta = torch.empty(3, device="meta")
    keys = ["one", "no", "two", "sparse", "meta"]
    assert store.batch_put_tensor(keys, [one, "text", two, sparse, meta]) == [0, INVALID, 0, INVALID, INVALID]
    found = store.batch_get_tensor(["two", "no", "one", "two"])
    assert same(found[0], two) and found[1] is None and same(found[2], one) and same(found[3], two)
    assert store.batch_upsert_tensor(["one", "new"], [two, one]) == [0, 0]
    assert same(store.get_tensor("one"), two)
    assert store.batch_put_tensor([], []) == [] == store.batch_get_tensor([])
    assert store.batch_put_tensor(["a", "b"], [one]) == [INVALID, INVALID]
    assert store.put_tensor("", one) == INVALID


def test_a_miss_is_none_or_a_code(store) -> None:
    memory = torch.zeros(1000, dtype=torch.uint8)
    assert store.get_tensor("none") is None
    assert store.get_tensor_into("none", memory.data_ptr(), 1000) is None
    assert store.get_tensor_into_cuda("none", memory) == NOT_FOUND
    assert store.batch_get_tensor(["none", "none"]) == [None, None]


def test_an_object_that_is_no_tensor_is_told_and_never_taken_for_one(store, capfd: pytest.CaptureFixture[str]) -> None:
    assert store.put("bytes", b"x" * 5000) == 0
    assert store.put("short", b"x") == 0
    memory = torch.zeros(5000, dtype=torch.uint8)
    for key in ("bytes", "short"):
        assert store.get_tensor(key) is None
        assert store.get_tensor_into(key, memory.data_ptr(), memory.numel()) is None
    assert store.get_tensor_into_cuda("bytes", memory[: 5000 - 128]) == INVALID
    assert "holds no tensor" in capfd.readouterr().err


def damaged(at: int, value: bytes) -> bytes:
    """A good object of 6 float32 with some bytes of its header replaced."""
    header = _tensors.Header(torch.float32, (2, 3), 24)
    block = bytearray(header.object_bytes)
    header.write(block, 0)
    block[at : at + len(value)] = value
    return bytes(block)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"M"),
        (8, struct.pack("<I", 2)),
        (12, struct.pack("<I", 64)),
        (16, struct.pack("<Q", 1 << 63)),
        (24, struct.pack("<I", 65)),
        (24, struct.pack("<I", 1 << 31)),
        (28, b"Tensor\0"),
        (28, b"float16\0"),
        (28, b"qint32\0"),
        (28, b"\xff\xfe\0"),
        (48, struct.pack("<Q", 3)),
        (48, struct.pack("<QQ", 1 << 63, 1 << 63)),
    ],
)
def test_a_damaged_header_is_refused(store, at: int, value: bytes) -> None:
    assert store.put("good", damaged(0, b"m")) == 0
    assert store.get_tensor("good").shape == (2, 3)
    block = damaged(at, value)
    assert store.put("t", block) == 0
    assert store.get_tensor("t") is None
    memory = ctypes.create_string_buffer(block, len(block))
    assert store.put_tensor_from("u", ctypes.addressof(memory), len(block)) == INVALID
    assert store.is_exist("u") == 0


def test_a_tensor_travels_on_from_the_memory_it_was_read_into(store) -> None:
    tensor = random_tensor(torch.bfloat16, 33, 17)
    assert store.put_tensor("t", tensor) == 0
    memory = torch.zeros(1 << 16, dtype=torch.uint8)
    view = store.get_tensor_into("t", memory.data_ptr(), memory.numel())
    assert view.data_ptr() == memory.data_ptr() + 128
    assert store.put_tensor_from("copy", memory.data_ptr(), memory.numel()) == 0
    assert store.get_size("copy") == store.get_size("t") == 128 + 33 * 17 * 2
    assert same(store.get_tensor("copy"), tensor)
    view.zero_()
    assert store.upsert_tensor_from("copy", memory.data_ptr(), 128 + 33 * 17 * 2) == 0
    assert same(store.get_tensor("copy"), torch.zeros_like(tensor))
    assert store.batch_put_tensor_from(["p", "q"], [memory.data_ptr(), 0], [memory.numel()] * 2) == [0, INVALID]
    assert store.batch_upsert_tensor_from(["p", "q"], [memory.data_ptr()], [memory.numel()]) == [INVALID, INVALID]
    assert store.put_tensor_from("r", memory.data_ptr(), 200) == INVALID


def test_memory_that_is_too_small_takes_nothing(store) -> None:
    assert store.put_tensor("t", torch.rand(100)) == 0
    memory = torch.zeros(1000, dtype=torch.uint8)
    assert store.get_tensor_into("t", memory.data_ptr(), 500) is None
    assert bits(memory) == bytes(1000)
    assert store.batch_get_tensor_into(["t", "t"], [memory.data_ptr(), 0], [1000, 1000])[1] is None
    assert store.batch_get_tensor_into(["t"], [], []) == [None]


def test_only_a_tensor_that_fits_is_filled(store) -> None:
    tensor = torch.rand(8, 4)
    assert store.put_tensor("t", tensor) == 0
    reshaped = torch.zeros(2, 16)
    assert store.get_tensor_into_cuda("t", reshaped) == 0
    assert bits(reshaped) == bits(tensor)
    assert store.get_tensor_into_cuda("t", torch.zeros(8, 5)) == INVALID
    assert store.get_tensor_into_cuda("t", torch.zeros(8, 4, dtype=torch.int32)) == INVALID
    assert store.get_tensor_into_cuda("t", torch.zeros(4, 8).t()) == INVALID
    assert store.get_tensor_into_cuda("t", None) == INVALID
    targets = [torch.zeros(8, 4), torch.zeros(3), torch.zeros(8, 4)]
    assert store.batch_get_tensor_into_cuda(["t", "t", "none"], targets) == [0, INVALID, NOT_FOUND]
    assert same(targets[0], tensor)
    assert store.batch_get_tensor_into_cuda(["t"], []) == [INVALID]


@pytest.mark.parametrize("split_dim", [0, 1, -1])
def test_a_split_tensor_is_read_rank_by_rank(store, split_dim: int) -> None:
    tensor = torch.rand(8, 12)
    assert store.put_tensor_with_tp("w", tensor, tp_rank=1, tp_size=4, split_dim=split_dim) == 0
    parts = [store.get_tensor_with_tp("w", rank, 4) for rank in range(4)]
    assert same(torch.cat(parts, dim=split_dim), tensor)
    assert store.is_exist("w") == 0
    memory = torch.zeros(4096, dtype=torch.uint8)
    assert same(store.get_tensor_with_tp_into("w", memory.data_ptr(), 4096, 2, 4), parts[2])
    assert same(store.batch_get_tensor_with_tp(["w"], 3, 4)[0], parts[3])
    assert same(store.batch_get_tensor_with_tp_into(["w"], [memory.data_ptr()], [4096], 3, 4)[0], parts[3])


def test_splitting_that_does_not_divide_leaves_no_element_out_and_wrong_ranks_are_refused(store) -> None:
    tensor = torch.rand(5, 3)
    config = ReplicateConfig()
    config.group_ids = ["a", "b"]
    assert store.batch_pub_tensor_with_tp(["x", "y"], [tensor, torch.rand(())], config, 0, 3) == [0, INVALID]
    assert same(torch.cat(store.batch_get_tensor(["x_tp_0", "x_tp_1", "x_tp_2"])), tensor)
    assert store.put_tensor_with_tp("z", tensor, 3, 3) == INVALID
    assert store.put_tensor_with_tp("z", tensor, 0, 3, 2) == INVALID
    assert store.pub_tensor_with_tp("whole", tensor) == 0
    assert same(store.get_tensor_with_tp("whole"), tensor)
    assert store.batch_put_tensor_with_tp(["z"], [tensor], 0, 2) == [0]


@pytest.mark.parametrize("split_dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_whole_tensor_in_memory_is_split_over_the_ranks(store, dtype: torch.dtype, split_dim: int) -> None:
    tensor = random_tensor(dtype, 5, 8)
    assert store.put_tensor("whole", tensor) == 0
    memory = torch.zeros(4096, dtype=torch.uint8)
    assert store.get_tensor_into("whole", memory.data_ptr(), memory.numel()) is not None
    assert store.put_tensor_with_tp_from("w", memory.data_ptr(), memory.numel(), 2, 3, split_dim) == 0
    parts = [store.get_tensor_with_tp("w", rank, 3) for rank in range(3)]
    assert all(same(part, wanted) for part, wanted in zip(parts, torch.tensor_split(tensor, 3, dim=split_dim), strict=True))
    assert store.is_exist("w") == 0


def test_memory_to_split_is_checked_key_by_key(store, capfd: pytest.CaptureFixture[str]) -> None:
    tensor = torch.rand(4, 6)
    assert store.put_tensor("whole", tensor) == 0
    memory, junk = torch.zeros(4096, dtype=torch.uint8), torch.zeros(4096, dtype=torch.uint8)
    assert store.get_tensor_into("whole", memory.data_ptr(), memory.numel()) is not None
    addresses = [memory.data_ptr(), junk.data_ptr(), memory.data_ptr(), 0]
    assert store.batch_put_tensor_with_tp_from(["a", "b", "c", "d"], addresses, [4096, 4096, 200, 4096], 0, 2) == [0, INVALID, INVALID, INVALID]
    assert same(torch.cat(store.batch_get_tensor(["a_tp_0", "a_tp_1"])), tensor)
    assert store.batch_is_exist(["b_tp_0", "c_tp_0", "d_tp_0"]) == [0, 0, 0]
    assert "the 200 bytes of memory for key 'c' are no tensor" in capfd.readouterr().err
    assert store.put_tensor_with_tp_from("e", memory.data_ptr(), 4096) == 0  # one rank: the tensor under its own key
    assert same(store.get_tensor("e"), tensor)
    for rank, size, split_dim in ((2, 2, 0), (-1, 2, 0), (0, 0, 0), (0, 2, 2)):
        assert store.put_tensor_with_tp_from("f", memory.data_ptr(), 4096, rank, size, split_dim) == INVALID
    assert store.batch_put_tensor_with_tp_from(["f"], [], [4096]) == [INVALID]


def test_before_setup_the_calls_answer_as_all_others_do() -> None:
    store = MooncakeDistributedStore()
    tensor = torch.rand(3)
    assert store.put_tensor("t", tensor) == INVALID
    assert store.get_tensor("t") is None
    assert store.get_tensor_into_cuda("t", tensor) == INVALID
    with pytest.raises(TypeError):
        store.put_tensor(5, tensor)


def test_without_torch_a_call_says_what_is_missing_and_the_store_goes_on() -> None:
    code = """
import sys
sys.modules["torch"] = None  # import torch fails from here on
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.put_tensor("t", 1) == -1012 and store.batch_put_tensor(["a", "b"], [1, 2]) == [-1012, -1012]
assert store.get_tensor("t") is None and store.batch_get_tensor_into(["t"], [1], [1]) == [None]
assert store.get_tensor_into_cuda("t", 1) == -1012
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "put_tensor needs torch" in done.stderr


def test_torch_is_not_imported_by_the_modules_themselves() -> None:
    done = run_python("import sys, mooncake.store, mooncake.engine; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
