"""The calls and types of mooncake.store and mooncake.engine that this release does not have yet.

They exist with their names, parameters and defaults, so that an engine that only looks for them finds them. Called, they say so once each in
the log and answer what their callers take for "no": -1012 (not supported), None, or an empty list. Each later release moves some of them out.
"""

from __future__ import annotations

import threading

from mooncake import _native
from mooncake._native.store import ReplicateConfig, TaskStatus, TaskType

NOT_SUPPORTED = -1012

_DEFAULT_CONFIG = ReplicateConfig()
_said: set[str] = set()
_lock = threading.Lock()


def say_later(name: str, outcome: str = f"it answers {NOT_SUPPORTED} or nothing") -> None:
    """One line in the log, the first time that `name` is called."""
    with _lock:
        if name in _said:
            return
        _said.add(name)
    _native.log_warning(f"{name} is not supported yet in this release: {outcome}")


def _code(name: str) -> int:
    return _nothing(name, NOT_SUPPORTED)


def _codes(name: str, keys: list) -> list[int]:
    return _nothing(name, [NOT_SUPPORTED] * len(keys))


def _nothing(name: str, answer):
    say_later(name)
    return answer


class LaterCalls(_native.store.MooncakeDistributedStore):
    """The store's calls that are to come: tensors split by a parallelism, sessions, copy and move tasks, segments mounted one by one."""

    def alloc_from_mem_pool(self, arg0: int) -> int:
        return _nothing("alloc_from_mem_pool", 0)

    def allocate_and_mount_segment(self, size: int, protocol: str = "tcp", location: str = "") -> dict:
        return _nothing("allocate_and_mount_segment", {"ret": NOT_SUPPORTED, "segment_ids": []})

    def batch_get_session_end(self, keys: list[str]) -> int:
        return _code("batch_get_session_end")

    def batch_get_session_start(self, keys: list[str]) -> list[int]:
        return _codes("batch_get_session_start", keys)

    def batch_get_tensor_with_parallelism(self, keys: list[str], targets: object = None) -> list:
        return _nothing("batch_get_tensor_with_parallelism", [None] * len(keys))

    def batch_get_tensor_with_parallelism_into(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], targets: object = None) -> list:
        return _nothing("batch_get_tensor_with_parallelism_into", [None] * len(keys))

    def batch_put_from_multi_buffer_ranges(self, keys: list[str], all_buffer_ptrs: list[list[int]], all_sizes: list[list[int]], all_dst_offsets: list[list[int]]) -> list[int]:
        return _codes("batch_put_from_multi_buffer_ranges", keys)

    def batch_put_session_end(self, keys: list[str]) -> list[int]:
        return _codes("batch_put_session_end", keys)

    def batch_put_session_revoke(self, keys: list[str]) -> list[int]:
        return _codes("batch_put_session_revoke", keys)

    def batch_put_session_start(self, keys: list[str], sizes: list[int], config: ReplicateConfig = _DEFAULT_CONFIG) -> list[int]:
        return _codes("batch_put_session_start", keys)

    def batch_put_tensor_with_parallelism(self, keys: list[str], tensors_list: list, parallelisms: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partitions: object = None) -> list[int]:
        return _codes("batch_put_tensor_with_parallelism", keys)

    def batch_put_tensor_with_parallelism_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], parallelisms: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partitions: object = None) -> list[int]:
        return _codes("batch_put_tensor_with_parallelism_from", keys)

    def batch_replica_clear(self, keys: list[str], segment_name: str = "") -> list[str]:
        return _nothing("batch_replica_clear", [])

    def batch_upsert_tensor_with_parallelism(self, keys: list[str], tensors_list: list, parallelisms: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partitions: object = None) -> list[int]:
        return _codes("batch_upsert_tensor_with_parallelism", keys)

    def batch_upsert_tensor_with_parallelism_from(self, keys: list[str], buffer_ptrs: list[int], sizes: list[int], parallelisms: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partitions: object = None) -> list[int]:
        return _codes("batch_upsert_tensor_with_parallelism_from", keys)

    def create_copy_task(self, key: str, targets: list[str]) -> tuple:
        return _nothing("create_copy_task", ((0, 0), NOT_SUPPORTED))

    def create_move_task(self, key: str, source: str, target: str) -> tuple:
        return _nothing("create_move_task", ((0, 0), NOT_SUPPORTED))

    def get_tensor_with_parallelism(self, key: str, target: object = None) -> object:
        return _nothing("get_tensor_with_parallelism", None)

    def get_tensor_with_parallelism_into(self, key: str, buffer_ptr: int, size: int, target: object = None) -> object:
        return _nothing("get_tensor_with_parallelism_into", None)

    def load_tensor_from_safetensor(self, key: object = None, file_name: str | None = None) -> object:
        return _nothing("load_tensor_from_safetensor", None)

    def mount_segment(self, path: str, size: int, offset: int = 0, protocol: str = "tcp", location: str = "") -> dict:
        return _nothing("mount_segment", {"ret": NOT_SUPPORTED, "segment_ids": []})

    def put_tensor_with_parallelism(self, key: str, tensor: object, parallelism: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partition: object = None) -> int:
        return _code("put_tensor_with_parallelism")

    def put_tensor_with_parallelism_from(self, key: str, buffer_ptr: int, size: int, parallelism: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partition: object = None) -> int:
        return _code("put_tensor_with_parallelism_from")

    def query_task(self, task_id: tuple[int, int]) -> tuple:
        return _nothing("query_task", (None, NOT_SUPPORTED))

    def save_tensor_to_safetensor(self, key: str, file_name: object = None) -> int:
        return _code("save_tensor_to_safetensor")

    def unmount_and_free_segment(self, segment_ids: list[str], grace_period_seconds: int = 0) -> int:
        return _code("unmount_and_free_segment")

    def unmount_local_disk_segment(self, grace_period_seconds: int = 0) -> int:
        return _code("unmount_local_disk_segment")

    def unmount_segment(self, segment_ids: list[str], grace_period_seconds: int = 0) -> int:
        return _code("unmount_segment")

    def upsert_tensor_with_parallelism(self, key: str, tensor: object, parallelism: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partition: object = None) -> int:
        return _code("upsert_tensor_with_parallelism")

    def upsert_tensor_with_parallelism_from(self, key: str, buffer_ptr: int, size: int, parallelism: object = None, config: ReplicateConfig = _DEFAULT_CONFIG, writer_partition: object = None) -> int:
        return _code("upsert_tensor_with_parallelism_from")


class ParallelAxis:
    """One axis along which a tensor is split over ranks."""

    def __init__(self) -> None:
        self.kind = ""
        self.rank = 0
        self.size = 1
        self.split_dim: int | None = None
        self.expert_id: int | None = None
        self.stage_id: int | None = None


class TensorParallelism:
    """The axes along which a tensor is split."""

    def __init__(self) -> None:
        self.axes: list[ParallelAxis] = []


class ReadTarget:
    """Which part of a split tensor a reader wants."""

    def __init__(self) -> None:
        self.mode = ""
        self.parallelism: TensorParallelism | None = None


class QueryTaskResponse:
    """The state of a copy or move task."""

    def __init__(self) -> None:
        self.id = (0, 0)
        self.type = TaskType.REPLICA_COPY
        self.status = TaskStatus.PENDING
        self.created_at_ms_epoch = 0
        self.last_updated_at_ms_epoch = 0
        self.assigned_client = (0, 0)
        self.message = ""


class BufferLeaseView:
    """What `with pool.buffer(size) as view` gives."""

    buffer: object = None


class BufferLease:
    """A buffer taken from a BufferPool."""

    buffer: object = None
    ptr: int = 0
    size: int = 0

    def release(self) -> None:
        """Nothing to give back in this release."""


class BufferPool:
    """Registered buffers by size class; to come. Making one raises NotImplementedError, because there is no answer that means "no"."""

    def __init__(
        self,
        store: object,
        max_bytes: int = 0,
        min_size_class: int = 65536,
        max_size_class: object = None,
        alignment: int = 8388608,
        block_on_exhaustion: bool = True,
        default_timeout: object = None,
        max_regions: object = None,
        prewarm_size: object = None,
        prewarm_count: int = 0,
    ) -> None:
        raise NotImplementedError("BufferPool is not supported yet in this release: allocate a buffer and use store.register_buffer")

    def acquire(self, size: int, block: object = None, timeout: object = None) -> BufferLease:
        raise NotImplementedError

    def buffer(self, size: int, block: object = None, timeout: object = None) -> BufferLease:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def prewarm(self, size: int, count: int) -> None:
        raise NotImplementedError


RegisteredBufferPool = BufferPool
RegisteredBufferLease = BufferLease
RegisteredBufferLeaseView = BufferLeaseView


def bind_to_numa_node(node: int) -> None:
    say_later("bind_to_numa_node", "memory stays where the kernel puts it")


def get_alloc_func_addr() -> int:
    return _nothing("get_alloc_func_addr", 0)


def get_free_func_addr() -> int:
    return _nothing("get_free_func_addr", 0)


class InnerTransferEngine:
    """The C++ engine of the incumbent; never made here."""


class SharedSegment:
    """A segment shared between processes; to come."""

    def base_addr(self) -> int:
        raise NotImplementedError

    def complete(self, blobs: list[str]) -> None:
        raise NotImplementedError

    def device_addr(self) -> int:
        raise NotImplementedError

    def ready(self) -> bool:
        return False

    def size(self) -> int:
        return 0


class RpcInterface:
    """Messages between engines; to come. Starting one fails, so nothing is ever sent."""

    def __init__(self) -> None:
        say_later("RpcInterface", "its initialize calls answer False")

    def initialize(self, listen_address: str = "", thread_count: int = 0, timeout_seconds: int = 30, pool_size: int = 100) -> bool:
        return False

    def initialize_client(self, pool_size: int = 100, timeout_seconds: int = 30) -> bool:
        return False

    def initialize_server(self, listen_address: str, thread_count: int = 8, timeout_seconds: int = 30) -> bool:
        return False

    def send_data(self, target_address: str, data: object) -> int:
        return -1

    def send_data_async(self, target_address: str, data: object, loop: object) -> object:
        raise NotImplementedError

    def send_tensor(self, target_address: str, tensor: object) -> int:
        return -1

    def send_tensor_async(self, target_address: str, tensor: object, loop: object) -> object:
        raise NotImplementedError

    def set_data_receive_callback(self, arg0: object) -> None:
        """Nothing is ever received."""

    def set_tensor_receive_callback(self, arg0: object) -> None:
        """Nothing is ever received."""

    def start_server(self) -> bool:
        return False

    def start_server_async(self) -> bool:
        return False

    def stop_server(self) -> None:
        """Nothing was started."""


def create_rpc_client(local_rank: int = 0, world_size: int = 1) -> RpcInterface:
    return RpcInterface()


def create_rpc_server(local_rank: int = 0, world_size: int = 1) -> RpcInterface:
    return RpcInterface()
