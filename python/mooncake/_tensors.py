"""The store's calls that take and give torch tensors.

A tensor is one object: a header, then its elements in C order. Both leave from where they are (the header from a buffer here, the elements from
the tensor's own memory, on a GPU too), so nothing is put together in between. The header is 128 bytes for up to ten dimensions and grows by 64
for every eight more; little endian:

    offset  bytes
         0      8  "moontnsr"
         8      4  version, 1
        12      4  bytes of this header
        16      8  bytes of the elements
        24      4  dimensions
        28     20  the dtype's name in torch ("bfloat16", "float8_e4m3fn"), filled up with zeros
        48      8  of each dimension its size; then zeros to the end of the header

Order on a GPU: the store's own work comes after all that is queued on the legacy default stream, on which torch runs unless told otherwise. Where
another stream is current for the tensor's device, these calls wait for it first. All of them return when the bytes are where they belong.

Torch is imported by the first call that needs it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from mooncake import _native
from mooncake._later import NOT_SUPPORTED, LaterCalls
from mooncake._native.store import BufferHandle, ReplicateConfig

INVALID = -600

_DEFAULT_CONFIG = ReplicateConfig()
_FIXED = struct.Struct("<8sIIQI20s")
_MAGIC, _VERSION = b"moontnsr", 1
_LEAST_HEADER, _HEADER_STEP = 128, 64
# All of a ReplicateConfig but its group_ids.
_CONFIG_FIELDS = (
    "replica_num", "nof_replica_num", "dfs_replica_num", "soft_pin_action", "soft_pin_ttl_ms", "with_hard_pin", "preferred_segment",
    "preferred_segments", "preferred_nof_segments", "prefer_alloc_in_same_node", "data_type",
)  # fmt: skip
_MOST_DIMENSIONS = 64  # torch's own limit
# What the native calls answer with -600, leaving the other keys alone.
_NO_MEMORY: tuple[list[int], list[int]] = ([0], [1])


class NoTensor(ValueError):
    """The bytes are not an object that these calls have stored; the text says why."""


def header_bytes(dimensions: int) -> int:
    """The length of the header of a tensor with so many dimensions."""
    return max(_LEAST_HEADER, -(-(_FIXED.size + 8 * dimensions) // _HEADER_STEP) * _HEADER_STEP)


_MOST_HEADER = header_bytes(_MOST_DIMENSIONS)


class Header:
    """What stands in front of a tensor's elements. (No dataclass: importing those would cost every user of the store a third of its start.)"""

    __slots__ = ("dtype", "shape", "data_bytes")

    def __init__(self, dtype: Any, shape: tuple[int, ...], data_bytes: int) -> None:
        self.dtype, self.shape, self.data_bytes = dtype, shape, data_bytes

    @classmethod
    def of(cls, tensor: Any) -> Header:
        return cls(tensor.dtype, tuple(tensor.shape), tensor.numel() * tensor.element_size())

    @property
    def length(self) -> int:
        return header_bytes(len(self.shape))

    @property
    def object_bytes(self) -> int:
        return self.length + self.data_bytes

    def write(self, buffer: Any, offset: int) -> None:
        """Into a writable buffer that is zero from `offset` on."""
        name = str(self.dtype).removeprefix("torch.").encode()
        _FIXED.pack_into(buffer, offset, _MAGIC, _VERSION, self.length, self.data_bytes, len(self.shape), name)
        struct.pack_into(f"<{len(self.shape)}Q", buffer, offset + _FIXED.size, *self.shape)

    @classmethod
    def read(cls, torch: ModuleType, start: bytes, object_bytes: int) -> Header:
        """From the first bytes of an object (all of its header) of that many bytes. Raises NoTensor; believes nothing that it has not checked."""
        if object_bytes < _LEAST_HEADER or len(start) < _LEAST_HEADER:
            raise NoTensor(f"its {object_bytes} bytes are less than a tensor's header")
        magic, version, length, data_bytes, dimensions, name = _FIXED.unpack_from(start)
        if magic != _MAGIC:
            raise NoTensor("it does not begin with a tensor's header: it was stored by another call than put_tensor")
        if version != _VERSION:
            raise NoTensor(f"its header is of version {version}, and this release reads version {_VERSION}")
        if dimensions > _MOST_DIMENSIONS or length != header_bytes(dimensions) or length > len(start):
            raise NoTensor(f"its header of {length} bytes with {dimensions} dimensions is damaged")
        shape = struct.unpack_from(f"<{dimensions}Q", start, _FIXED.size)
        dtype_name = name.rstrip(b"\0").decode("ascii", "replace")
        dtype = getattr(torch, dtype_name, None)
        if not isinstance(dtype, torch.dtype) or dtype_name.startswith("q"):  # quantized: more than bytes, and never stored
            raise NoTensor(f"its dtype is '{dtype_name}', of which torch {torch.__version__} makes no tensor from bytes")
        if math.prod(shape) * dtype.itemsize != data_bytes or length + data_bytes != object_bytes:
            raise NoTensor(f"its header says {dtype_name} of shape {list(shape)}, and the object has {object_bytes - length} bytes of elements")
        return cls(dtype, shape, data_bytes)


# ---------------------------------------------------------------------------------------------------------------------- torch's side


def _torch(call: str) -> ModuleType | None:
    try:
        import torch
    except ImportError as error:
        _native.log_error(f"{call} needs torch, which cannot be imported in this process ({error}): install torch, or use put and get")
        return None
    return torch


def _why_not(torch: ModuleType, tensor: object) -> str:
    """Why this cannot be stored or filled; empty when it can."""
    if not isinstance(tensor, torch.Tensor):
        return f"{type(tensor).__name__} is no torch tensor"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"a {'quantized' if tensor.is_quantized else tensor.layout} tensor has more to it than its elements: store those by themselves"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"its memory is on '{tensor.device}': move it to the CPU or to a CUDA device"
    if len(str(tensor.dtype).removeprefix("torch.")) > 20:
        return f"the name of {tensor.dtype} does not fit the header"
    return ""


def _plain(torch: ModuleType, tensor: Any) -> Any:
    """The same elements in C order and with nothing left to be done when they are read (conjugation, negation)."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype.itemsize == 1:  # as bytes: torch rearranges no integers narrower than eight bits
        return plain.view(torch.uint8).contiguous().view(plain.dtype)
    return plain.contiguous()


def _wait_for_current_streams(torch: ModuleType, devices: Iterable[Any]) -> None:
    for device in set(devices):
        if device.type == "cuda" and (stream := torch.cuda.current_stream(device)).cuda_stream != 0:
            stream.synchronize()


class _DeviceMemory:
    """Device memory by its address, as torch.as_tensor takes it."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3, "stream": None}


def _bytes_at(torch: ModuleType, address: int, size: int) -> Any:
    """A tensor of bytes over memory of the caller's, on the host or on the device that it belongs to. No copy."""
    device = _native.device_of(address)
    if device >= 0:
        return torch.as_tensor(_DeviceMemory(address, size), device=torch.device("cuda", device))
    return torch.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype=torch.uint8)


def _start_of(memory: Any) -> bytes:
    return bytes(memory[:_MOST_HEADER].cpu().tolist())


def _shaped(memory: Any, header: Header) -> Any:
    """The tensor whose object lies in `memory`, a tensor of bytes. NoTensor for a dtype that has more to it than bytes."""
    try:
        return memory[header.length : header.object_bytes].view(header.dtype).view(header.shape)
    except RuntimeError as error:
        raise NoTensor(f"torch makes no {header.dtype} of bytes ({str(error).splitlines()[0]})") from error


class _Headers:
    """The headers of a batch side by side in memory of ours, by address."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._buffer = ctypes.create_string_buffer(max(1, sum(lengths)))
        self._starts = list(itertools.accumulate(lengths, initial=0))

    def write(self, index: int, header: Header) -> None:
        header.write(self._buffer, self._starts[index])

    def address(self, index: int) -> int:
        return ctypes.addressof(self._buffer) + self._starts[index]

    def bytes(self, index: int) -> bytes:
        return self._buffer.raw[self._starts[index] :][:_MOST_HEADER]


_Pieces = tuple[list[int], list[int]]  # addresses and sizes of one object


def _pieces(header_address: int, header: Header | None, tensor: Any) -> _Pieces:
    """A header in memory of ours, then the tensor's elements; for no header, what the native calls refuse."""
    return _NO_MEMORY if header is None else ([header_address, tensor.data_ptr()], [header.length, header.data_bytes])


def _columns(pieces: Sequence[_Pieces]) -> tuple[list[list[int]], list[list[int]]]:
    return [addresses for addresses, _ in pieces], [sizes for _, sizes in pieces]


# ------------------------------------------------------------------------------------------------------------------------ the calls


class TensorCalls(LaterCalls):
    """The store's calls with torch tensors. 0 or a negative code; a tensor, or None for a miss and for what is no tensor (said in the log)."""

    # ------------------------------------------------------------------------------------------------------------------- what they do

    def _write_tensors(self, call: str, replace: bool, keys: list[str], tensors: Sequence[Any], config: ReplicateConfig) -> list[int]:
        torch = _torch(call)
        if torch is None:
            return [NOT_SUPPORTED] * len(keys)
        if len(tensors) != len(keys):
            return [INVALID] * len(keys)
        held = [None if self._refused(call, torch, key, tensor) else _plain(torch, tensor) for key, tensor in zip(keys, tensors, strict=True)]
        headers = _Headers([0 if tensor is None else header_bytes(tensor.dim()) for tensor in held])
        pieces: list[_Pieces] = []
        for index, tensor in enumerate(held):
            header = None if tensor is None else Header.of(tensor)
            if header is not None:
                headers.write(index, header)
            pieces.append(_pieces(headers.address(index), header, tensor))
        _wait_for_current_streams(torch, (tensor.device for tensor in held if tensor is not None))
        return self._write_pieces(call, replace, keys, *_columns(pieces), config)

    def _write_tensors_at(self, call: str, replace: bool, keys: list[str], addresses: list[int], sizes: list[int], config: ReplicateConfig) -> list[int]:
        """From memory that holds header and elements, as get_tensor_into leaves it."""
        torch = _torch(call)
        if torch is None:
            return [NOT_SUPPORTED] * len(keys)
        if len(addresses) != len(keys) or len(sizes) != len(keys):
            return [INVALID] * len(keys)
        pieces = []
        for key, address, size in zip(keys, addresses, sizes, strict=True):
            try:
                pieces.append(([address], [self._object_at(torch, address, size)]))
            except NoTensor as error:
                _native.log_error(f"{call}: the {size} bytes of memory for key '{key}' are no tensor: {error}")
                pieces.append(_NO_MEMORY)
        return self._write_pieces(call, replace, keys, *_columns(pieces), config)

    @staticmethod
    def _object_at(torch: ModuleType, address: int, size: int) -> int:
        """The bytes of the object at the start of this memory, which may be longer than it."""
        if address == 0 or size < _LEAST_HEADER:
            raise NoTensor("it is less than a tensor's header")
        memory = _bytes_at(torch, address, size)
        _wait_for_current_streams(torch, [memory.device])
        start = _start_of(memory)
        length, data_bytes = struct.unpack_from("<IQ", start, 12)
        if length + data_bytes > size:
            raise NoTensor(f"its header says {length + data_bytes} bytes")
        return Header.read(torch, start, length + data_bytes).object_bytes

    @staticmethod
    def _refused(call: str, torch: ModuleType, key: str, tensor: object) -> bool:
        if reason := _why_not(torch, tensor):
            _native.log_error(f"{call}: key '{key}': {reason}")
        return bool(reason)

    def _read_tensors(self, call: str, keys: list[str]) -> list:
        torch = _torch(call)
        if torch is None:
            return [None] * len(keys)
        return [self._from_handle(call, torch, key, handle) for key, handle in zip(keys, self.batch_get_buffer(keys), strict=True)]

    @staticmethod
    def _from_handle(call: str, torch: ModuleType, key: str, handle: BufferHandle | None) -> Any:
        """A tensor with memory of its own: the handle's where that is a copy already, else copied out of the pool's."""
        if handle is None:
            return None
        view = memoryview(handle)
        try:
            header = Header.read(torch, bytes(view[:_MOST_HEADER]), len(view))
            if not view.readonly:
                return _shaped(torch.frombuffer(view, dtype=torch.uint8), header)
            memory = torch.empty(len(view), dtype=torch.uint8)
            ctypes.memmove(memory.data_ptr(), handle.ptr(), len(view))
            return _shaped(memory, header)
        except NoTensor as error:
            _native.log_error(f"{call}: key '{key}' holds no tensor: {error}")
            return None

    def _read_tensors_at(self, call: str, keys: list[str], addresses: list[int], sizes: list[int]) -> list:
        """Header and elements into the caller's memory, and tensors over it."""
        torch = _torch(call)
        if torch is None or len(addresses) != len(keys) or len(sizes) != len(keys):
            return [None] * len(keys)
        memories = [_bytes_at(torch, address, size) if address and size else None for address, size in zip(addresses, sizes, strict=True)]
        _wait_for_current_streams(torch, (memory.device for memory in memories if memory is not None))
        found = []
        for key, memory, size, count in zip(keys, memories, sizes, self.batch_get_into(keys, addresses, sizes), strict=True):
            tensor = None
            if count >= 0 and memory is not None:
                try:
                    tensor = _shaped(memory, Header.read(torch, _start_of(memory), count))
                except NoTensor as error:
                    _native.log_error(f"{call}: key '{key}' holds no tensor: {error}")
            elif count == INVALID and memory is not None:
                _native.log_error(f"{call}: key '{key}' with its {self.get_size(key)} bytes, header included, does not fit {size} bytes of memory")
            found.append(tensor)
        return found

    def _read_tensors_into(self, call: str, keys: list[str], tensors: Sequence[Any]) -> list[int]:
        """Elements straight into the tensors; the headers into memory of ours."""
        torch = _torch(call)
        if torch is None:
            return [NOT_SUPPORTED] * len(keys)
        if len(tensors) != len(keys):
            return [INVALID] * len(keys)
        wanted: list[Header | None] = []
        for key, tensor in zip(keys, tensors, strict=True):
            refused = self._refused(call, torch, key, tensor)
            if not refused and not (tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()):
                _native.log_error(f"{call}: key '{key}': only a contiguous tensor can be filled: give tensor.contiguous(), or use get_tensor")
                refused = True
            wanted.append(None if refused else Header.of(tensor))
        headers = _Headers([0 if header is None else header.length for header in wanted])
        pieces = [_pieces(headers.address(index), header, tensor) for index, (tensor, header) in enumerate(zip(tensors, wanted, strict=True))]
        _wait_for_current_streams(torch, (tensor.device for tensor, header in zip(tensors, wanted, strict=True) if header is not None))
        counts = self.batch_get_into_multi_buffers(keys, *_columns(pieces))
        answers = enumerate(zip(keys, counts, wanted, strict=True))
        return [self._judged(call, torch, key, count, header, headers.bytes(index)) for index, (key, count, header) in answers]

    def _judged(self, call: str, torch: ModuleType, key: str, count: int, wanted: Header | None, start: bytes) -> int:
        if count == INVALID and wanted is not None:
            size = self.get_size(key)
            if size >= 0 and size != wanted.object_bytes:
                _native.log_error(f"{call}: key '{key}' has {size} bytes with its header, and a tensor of this dtype and shape {wanted.object_bytes}")
        if count < 0 or wanted is None:
            return count
        try:
            found = Header.read(torch, start, count)
        except NoTensor as error:
            _native.log_error(f"{call}: key '{key}' holds no tensor: {error}")
            return INVALID
        if found.dtype != wanted.dtype:
            _native.log_error(f"{call}: key '{key}' holds {found.dtype}, and the tensor given has {wanted.dtype}; its elements are worth nothing now")
            return INVALID
        return 0

    # ---------------------------------------------------------------------------------------------------------------------- put, upsert

    def put_tensor(self, key: str, tensor: object) -> int:
        """Stores a tensor on the CPU or a GPU: any dtype and shape; elements in C order whatever its strides. 0, also for a key that is there
        (its first value stays); -600 for what is no dense tensor; -200 when the pool is full."""
        return self._write_tensors("put_tensor", False, [key], [tensor], _DEFAULT_CONFIG)[0]

    def upsert_tensor(self, key: str, tensor: object) -> int:
        """As put_tensor, but replaces what is there."""
        return self._write_tensors("upsert_tensor", True, [key], [tensor], _DEFAULT_CONFIG)[0]

    def pub_tensor(self, key: str, tensor: object, config: ReplicateConfig = _DEFAULT_CONFIG) -> int:
        """put_tensor with a ReplicateConfig."""
        return self._write_tensors("pub_tensor", False, [key], [tensor], config)[0]

    def upsert_pub_tensor(self, key: str, tensor: object, config: ReplicateConfig = _DEFAULT_CONFIG) -> int:
        """upsert_tensor with a ReplicateConfig."""
        return self._write_tensors("upsert_pub_tensor", True, [key], [tensor], config)[0]

    def batch_put_tensor(self, keys: list[str], tensors_list: list) -> list[int]:
        """put_tensor of each pair; one code per key. On GPUs all of them are one batch."""
        return self._write_tensors("batch_put_tensor", False, keys, tensors_list, _DEFAULT_CONFIG)

    def batch_upsert_tensor(self, keys: list[str], tensors_list: list) -> list[int]:
        """upsert_tensor of each pair; one code per key."""
        return self._write_tensors("batch_upsert_tensor", True, keys, tensors_list, _DEFAULT_CONFIG)

    def batch_pub_tensor(self, keys: list[str], tensors_list: list, config: ReplicateConfig = _DEFAULT_CONFIG) -> list[int]:
        """pub_tensor of each pair; one code per key."""
        return self._write_tensors("batch_pub_tensor", False, keys, tensors_list, config)

    def batch_upsert_pub_tensor(self, keys: list[str], tensors_list: list, config: ReplicateConfig = _DEFAULT_CONFIG) -> list[int]:
        """upsert_pub_tensor of each pair; one code per key."""
        return self._write_tensors("batch_upsert_pub_tensor", True, keys, tensors_list, config)

    def put_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """Stores the tensor that lies at `buffer_ptr` as get_tensor_into leaves it, its header first; `size` may be more than it takes."""
        return self._write_tensors_at("put_tensor_from", False, [key], [buffer_ptr], [size], _DEFAULT_CONFIG)[0]

    def upsert_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        """As put_tensor_from, but replaces what is there."""
        return self._write_tensors_at("upsert_tensor_from", True, [key], [buffer_ptr], [size], _DEFAULT_CONFIG)[0]

    def batch_put_tensor_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[int]:
        """put_tensor_from of each key; one code per key."""
        return self._write_tensors_at("batch_put_tensor_from", False, keys, buffer_ptrs, sizes, _DEFAULT_CONFIG)

    def batch_upsert_tensor_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list[int]:
        """upsert_tensor_from of each key; one code per key."""
        return self._write_tensors_at("batch_upsert_tensor_from", True, keys, buffer_ptrs, sizes, _DEFAULT_CONFIG)

    # ------------------------------------------------------------------------------------------------------------------------------- get

    def get_tensor(self, key: str) -> object:
        """The tensor, on the CPU wherever it came from, with memory of its own; None when there is none or it cannot be read intact."""
        return self._read_tensors("get_tensor", [key])[0]

    def batch_get_tensor(self, keys: list[str]) -> list:
        """get_tensor of each key."""
        return self._read_tensors("batch_get_tensor", keys)

    def get_tensor_into(self, key: str, buffer_ptr: int, size: int) -> object:
        """Reads header and elements to address `buffer_ptr` (host or device memory, of `size` bytes) and gives a tensor over that memory, which has
        to outlive it. None when there is none or it does not fit."""
        return self._read_tensors_at("get_tensor_into", [key], [buffer_ptr], [size])[0]

    def batch_get_tensor_into(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]) -> list:
        """get_tensor_into of each key."""
        return self._read_tensors_at("batch_get_tensor_into", keys, buffer_ptrs, sizes)

    def get_tensor_into_cuda(self, key: str, tensor: object) -> int:
        """Reads the elements straight into a contiguous tensor on a GPU (one on the CPU will do) with the stored one's dtype and number of bytes. 0;
        -704 for a miss, -600 where they differ. After a negative code the tensor's elements are undefined."""
        return self._read_tensors_into("get_tensor_into_cuda", [key], [tensor])[0]

    def batch_get_tensor_into_cuda(self, keys: list[str], tensors_list: list) -> list[int]:
        """get_tensor_into_cuda of each pair; one code per key."""
        return self._read_tensors_into("batch_get_tensor_into_cuda", keys, tensors_list)

    # ------------------------------------------------------------------------------------- split over the ranks of tensor parallelism

    def _write_shards(
        self, call: str, keys: list[str], tensors: Sequence[Any], config: ReplicateConfig, tp_rank: int, tp_size: int, split_dim: int
    ) -> list[int]:
        torch = _torch(call)
        if torch is None:
            return [NOT_SUPPORTED] * len(keys)
        if len(tensors) != len(keys) or not 0 <= tp_rank < tp_size or (config.group_ids and len(config.group_ids) != len(keys)):
            return [INVALID] * len(keys)
        if tp_size == 1:
            return self._write_tensors(call, False, keys, tensors, config)
        codes = [INVALID] * len(keys)
        shards: list[tuple[int, str, Any]] = []
        for index, (key, tensor) in enumerate(zip(keys, tensors, strict=True)):
            if self._refused(call, torch, key, tensor):
                continue
            if not -tensor.dim() <= split_dim < tensor.dim():
                _native.log_error(f"{call}: key '{key}': there is no dimension {split_dim} to split in a tensor of {tensor.dim()}")
                continue
            codes[index] = 0
            parts = torch.tensor_split(tensor, tp_size, dim=split_dim)
            shards += [(index, shard_key(key, rank), part) for rank, part in enumerate(parts)]
        answers = self._write_tensors(call, False, [key for _, key, _ in shards], [part for _, _, part in shards], _for_shards(config, shards))
        for (index, _, _), code in zip(shards, answers, strict=True):
            codes[index] = codes[index] or code
        return codes

    def put_tensor_with_tp(self, key: str, tensor: object, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> int:
        """Splits the tensor along split_dim into tp_size parts and stores each under a key of its own, those of all ranks (tp_rank is checked alone).
        0, or the first part's code that is not. A part is one element larger than others where the dimension does not divide."""
        return self._write_shards("put_tensor_with_tp", [key], [tensor], _DEFAULT_CONFIG, tp_rank, tp_size, split_dim)[0]

    def pub_tensor_with_tp(
        self, key: str, tensor: object, config: ReplicateConfig = _DEFAULT_CONFIG, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> int:
        """put_tensor_with_tp with a ReplicateConfig."""
        return self._write_shards("pub_tensor_with_tp", [key], [tensor], config, tp_rank, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp(self, base_keys: list[str], tensors_list: list, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> list[int]:
        """put_tensor_with_tp of each pair; one code per key."""
        return self._write_shards("batch_put_tensor_with_tp", base_keys, tensors_list, _DEFAULT_CONFIG, tp_rank, tp_size, split_dim)

    def batch_pub_tensor_with_tp(
        self, base_keys: list[str], tensors_list: list, config: ReplicateConfig = _DEFAULT_CONFIG, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> list[int]:
        """pub_tensor_with_tp of each pair; one code per key."""
        return self._write_shards("batch_pub_tensor_with_tp", base_keys, tensors_list, config, tp_rank, tp_size, split_dim)

    def _write_shards_at(
        self, call: str, keys: list[str], addresses: list[int], sizes: list[int], tp_rank: int, tp_size: int, split_dim: int
    ) -> list[int]:
        """From memory that holds header and elements of whole tensors. Parts that lie side by side there leave from where they are."""
        torch = _torch(call)
        if torch is None:
            return [NOT_SUPPORTED] * len(keys)
        if len(addresses) != len(keys) or len(sizes) != len(keys) or not 0 <= tp_rank < tp_size:
            return [INVALID] * len(keys)
        codes = [INVALID] * len(keys)
        whole: list[tuple[int, Any]] = []
        for index, (key, address, size) in enumerate(zip(keys, addresses, sizes, strict=True)):
            try:
                memory = _bytes_at(torch, address, self._object_at(torch, address, size))
                whole.append((index, _shaped(memory, Header.read(torch, _start_of(memory), len(memory)))))
            except NoTensor as error:
                _native.log_error(f"{call}: the {size} bytes of memory for key '{key}' are no tensor: {error}")
        tensors = [tensor for _, tensor in whole]
        answers = self._write_shards(call, [keys[index] for index, _ in whole], tensors, _DEFAULT_CONFIG, tp_rank, tp_size, split_dim)
        for (index, _), code in zip(whole, answers, strict=True):
            codes[index] = code
        return codes

    def put_tensor_with_tp_from(self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> int:
        """put_tensor_with_tp of the whole tensor that lies at `buffer_ptr` as get_tensor_into leaves it, its header first, within `size` bytes."""
        return self._write_shards_at("put_tensor_with_tp_from", [key], [buffer_ptr], [size], tp_rank, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp_from(
        self, base_keys: list[str], buffer_ptrs: list[int], sizes: list[int], tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> list[int]:
        """put_tensor_with_tp_from of each key; one code per key."""
        return self._write_shards_at("batch_put_tensor_with_tp_from", base_keys, buffer_ptrs, sizes, tp_rank, tp_size, split_dim)

    def get_tensor_with_tp(self, key: str, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> object:
        """The part of rank tp_rank; with tp_size 1 the whole tensor."""
        return self._read_tensors("get_tensor_with_tp", _shard_keys([key], tp_rank, tp_size))[0]

    def batch_get_tensor_with_tp(self, base_keys: list[str], tp_rank: int = 0, tp_size: int = 1) -> list:
        """get_tensor_with_tp of each key."""
        return self._read_tensors("batch_get_tensor_with_tp", _shard_keys(base_keys, tp_rank, tp_size))

    def get_tensor_with_tp_into(self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> object:
        """get_tensor_into of the part of rank tp_rank."""
        return self._read_tensors_at("get_tensor_with_tp_into", _shard_keys([key], tp_rank, tp_size), [buffer_ptr], [size])[0]

    def batch_get_tensor_with_tp_into(
        self, base_keys: list[str], buffer_ptrs: list[int], sizes: list[int], tp_rank: int = 0, tp_size: int = 1
    ) -> list:
        """get_tensor_with_tp_into of each key."""
        return self._read_tensors_at("batch_get_tensor_with_tp_into", _shard_keys(base_keys, tp_rank, tp_size), buffer_ptrs, sizes)


def shard_key(key: str, rank: int) -> str:
    """The key under which one rank's part of a split tensor is stored."""
    return f"{key}_tp_{rank}"


def _shard_keys(keys: list[str], tp_rank: int, tp_size: int) -> list[str]:
    return list(keys) if tp_size <= 1 else [shard_key(key, tp_rank) for key in keys]


def _for_shards(config: ReplicateConfig, shards: Sequence[tuple[int, str, Any]]) -> ReplicateConfig:
    """The config with a group name for each part, where the caller gave one for each key."""
    names = config.group_ids
    if not names:
        return config
    made = ReplicateConfig()
    for field in _CONFIG_FIELDS:
        setattr(made, field, getattr(config, field))
    made.group_ids = [names[index] for index, _, _ in shards]
    return made
