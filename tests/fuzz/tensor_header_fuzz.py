"""The header of a stored tensor, which another process wrote: any bytes give a tensor's layout that fits the object, or NoTensor.

Coverage-guided by atheris, whose command line is libFuzzer's. It starts from good headers of which some bytes are other ones.
"""

from __future__ import annotations

import math
import sys
import types

import atheris

with atheris.instrument_imports(include=["mooncake._tensors"]):
    from mooncake import _tensors


class DType:
    """As torch.dtype: the parser asks for no more than the type and the size of an element."""

    def __init__(self, name: str, itemsize: int) -> None:
        self.name, self.itemsize = name, itemsize

    def __repr__(self) -> str:
        return f"torch.{self.name}"


TORCH = types.ModuleType("torch")
TORCH.__version__ = "of the fuzzer"
TORCH.dtype = DType  # type: ignore[attr-defined]
for name, size in (("uint8", 1), ("bfloat16", 2), ("float32", 4), ("complex128", 16), ("qint8", 1)):
    setattr(TORCH, name, DType(name, size))
SHAPES = ((), (0,), (3,), (2, 3, 4), (1,) * 11, (2,) * 19)


def good_header(provider: atheris.FuzzedDataProvider) -> tuple[bytearray, int]:
    shape = SHAPES[provider.ConsumeIntInRange(0, len(SHAPES) - 1)]
    dtype = getattr(TORCH, ("uint8", "bfloat16", "float32", "complex128", "qint8")[provider.ConsumeIntInRange(0, 4)])
    header = _tensors.Header(dtype, shape, math.prod(shape) * dtype.itemsize)
    memory = bytearray(header.length)
    header.write(memory, 0)
    return memory, header.object_bytes


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    memory, object_bytes = good_header(provider)
    for _ in range(provider.ConsumeIntInRange(0, 4)):
        memory[provider.ConsumeIntInRange(0, len(memory) - 1)] = provider.ConsumeIntInRange(0, 255)
    if provider.ConsumeBool():
        object_bytes = provider.ConsumeIntInRange(0, 1 << 63)
    if provider.ConsumeBool():
        memory = bytearray(provider.ConsumeBytes(len(data)))
    try:
        found = _tensors.Header.read(TORCH, bytes(memory), object_bytes)
    except _tensors.NoTensor as error:
        assert str(error)
    else:
        assert found.object_bytes == object_bytes and found.length <= len(memory)
        assert math.prod(found.shape) * found.dtype.itemsize == found.data_bytes


atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
