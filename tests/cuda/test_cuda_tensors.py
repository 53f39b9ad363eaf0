"""Torch tensors on GPUs through the pool: from and into device memory, and in the order of torch's streams."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from paged import busy  # noqa: E402

INVALID = -600
GPUS = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.bool, torch.complex64]


def random_tensor(dtype: torch.dtype, *shape: int, device: str = "cuda") -> torch.Tensor:
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, device=device).bool()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8, device=device).view(dtype)


def same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(-1).view(torch.uint8).cpu()

    return one is not None and one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_leaves_a_gpu_and_returns_to_it(store, dtype: torch.dtype) -> None:
    tensor = random_tensor(dtype, 7, 33, 128)
    assert store.put_tensor("t", tensor) == 0
    found = store.get_tensor("t")
    assert found.device.type == "cpu" and same(found, tensor)
    target = torch.zeros_like(tensor.view(torch.uint8)).view(dtype)
    assert store.get_tensor_into_cuda("t", target) == 0
    assert same(target, tensor)


def test_batches_of_tensors_on_devices_and_the_host(store) -> None:
    tensors = [random_tensor(torch.bfloat16, 64, 128, device=device) for device in (*GPUS, "cpu")]
    keys = [f"t{index}" for index in range(len(tensors))]
    assert store.batch_put_tensor(keys, tensors) == [0] * len(keys)
    targets = [torch.zeros_like(tensor) for tensor in tensors]
    assert store.batch_get_tensor_into_cuda(keys, targets) == [0] * len(keys)
    assert all(same(target, tensor) for target, tensor in zip(targets, tensors, strict=True))


def test_non_contiguous_and_scalar_and_empty_tensors_of_a_gpu(store) -> None:
    base = torch.rand(50, 60, device="cuda")
    for key, tensor in {"t": base.t(), "strided": base[::3, 5:], "scalar": torch.tensor(3.5, device="cuda"), "empty": base[:0]}.items():
        assert store.put_tensor(key, tensor) == 0
        assert same(store.get_tensor(key), tensor)
    assert store.get_tensor_into_cuda("t", base.t()) == INVALID
    assert store.get_tensor_into_cuda("t", torch.zeros(60, 51, device="cuda")) == INVALID
    assert store.get_tensor_into_cuda("t", torch.zeros(60, 50, device="cuda", dtype=torch.int32)) == INVALID


def test_device_memory_of_the_callers_holds_a_tensor_with_its_header(store) -> None:
    tensor = random_tensor(torch.bfloat16, 16, 40)
    assert store.put_tensor("t", tensor) == 0
    memory = torch.zeros(1 << 16, dtype=torch.uint8, device="cuda")
    view = store.get_tensor_into("t", memory.data_ptr(), memory.numel())
    assert view.device == memory.device and view.data_ptr() == memory.data_ptr() + 128
    assert same(view, tensor)
    assert store.put_tensor_from("copy", memory.data_ptr(), memory.numel()) == 0
    assert same(store.get_tensor("copy"), tensor)


def test_a_tensor_computed_on_another_stream_is_stored_as_it_comes_out(store) -> None:
    side = torch.cuda.Stream()
    tensor = torch.zeros(1 << 20, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for turn in range(3):
            busy(tensor.device)
            tensor.fill_(turn + 1)
            assert store.upsert_tensor("t", tensor) == 0
            assert store.get_tensor("t").unique().tolist() == [turn + 1]


def test_a_tensor_that_another_stream_still_reads_is_not_overwritten_early(store) -> None:
    side = torch.cuda.Stream()
    tensor = torch.ones(1 << 20, device="cuda")
    assert store.put_tensor("t", torch.full((1 << 20,), 7.0)) == 0
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        busy(tensor.device)
        copy = tensor.clone()
        assert store.get_tensor_into_cuda("t", tensor) == 0
        assert float(copy.max()) == 1.0 and float(tensor.min()) == 7.0


def test_a_split_tensor_of_a_gpu(store) -> None:
    tensor = random_tensor(torch.bfloat16, 8, 128)
    assert store.put_tensor_with_tp("w", tensor, 0, 4, 1) == 0
    assert same(torch.cat([store.get_tensor_with_tp("w", rank, 4) for rank in range(4)], dim=1), tensor)
