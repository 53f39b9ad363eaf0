"""mooncake.store: the pool's client, as engines written for Mooncake use it.

The calls are C++ (mooncake._native.store) and release the interpreter lock while they wait; those with torch tensors are in _tensors.py. Here are the
parts that run once: setup and its arguments, and the end. Sizes are bytes. Calls answer 0, a count, or a negative code (docs/python.md); exceptions are for wrong types alone.
"""

from __future__ import annotations

from mooncake import _ending, _native, _settings
from mooncake._later import (  # noqa: F401
    BufferLease,
    BufferLeaseView,
    BufferPool,
    ParallelAxis,
    QueryTaskResponse,
    ReadTarget,
    RegisteredBufferLease,
    RegisteredBufferLeaseView,
    RegisteredBufferPool,
    TensorParallelism,
    bind_to_numa_node,
    get_alloc_func_addr,
    get_free_func_addr,
)
from mooncake._native.store import (  # noqa: F401
    ACTIVATION,
    COMPLETE,
    FAILED,
    GENERAL,
    GRADIENT,
    INITIALIZED,
    KVCACHE,
    METADATA,
    OPTIMIZER_STATE,
    PENDING,
    PROCESSING,
    REMOVED,
    REPLICA_COPY,
    REPLICA_MOVE,
    SAMPLE,
    SUCCESS,
    TENSOR,
    UNDEFINED,
    UNKNOWN,
    WEIGHT,
    BufferHandle,
    Descriptor,
    DiskDescriptor,
    MemoryDescriptor,
    MooncakeHostMemAllocator,
    ObjectDataType,
    ReplicaDescriptor,
    ReplicaStatus,
    ReplicateConfig,
    SoftPinAction,
    TaskStatus,
    TaskType,
)
from mooncake._tensors import TensorCalls

_native.configure_log("store", _settings.log_level())

_INVALID_PARAMS = -600
_NOT_SUPPORTED = -1012

# What the overload with a dict calls things, beside the parameters' own names; and what it takes when a name is left out.
_DICT_ALIASES = {"device_name": "rdma_devices", "device_names": "rdma_devices", "master_server_address": "master_server_addr"}
_DICT_DEFAULTS = {
    "global_segment_size": 16 << 20,
    "local_buffer_size": 16 << 20,
    "protocol": "tcp",
    "rdma_devices": "",
    "master_server_addr": "127.0.0.1:50051",
}


def setup(
    self,
    local_hostname: str,
    metadata_server: str,
    global_segment_size: int,
    local_buffer_size: int,
    protocol: str,
    rdma_devices: str,
    master_server_addr: str,
    engine: object = None,
    enable_ssd_offload: bool = False,
    ssd_offload_path: str = "",
    tenant_id: str = "default",
    enable_client_http_server: bool = False,
    client_http_port: int = 9300,
) -> dict:
    """Binds the arguments of setup to their names, and is its signature; named as it is for the texts of its TypeErrors."""
    arguments = dict(locals())
    del arguments["self"]
    return arguments


_bind_setup = setup
_bind_setup.__annotations__["return"] = "int"  # as users of setup see it
del setup
_PARAMETERS = _bind_setup.__code__.co_varnames[1 : _bind_setup.__code__.co_argcount]


class MooncakeDistributedStore(TensorCalls):
    """One node of the pool: lends memory to it, puts and gets objects. Any number of threads may call it."""

    def setup(self, *args, **kwargs) -> int:
        """Joins the pool: setup(local_hostname, metadata_server, ...) or setup(config: dict), whose sizes may be texts such as '16MB'.

        local_hostname      name or address of this host, with a port or without (then the first free one of 12300-14300 is taken)
        metadata_server     'etcd://h:p', 'redis://h:p', 'http://h:p/metadata', 'h:p' (etcd), or 'P2PHANDSHAKE'
        global_segment_size bytes of memory lent to the pool; 0 lends nothing
        local_buffer_size   0 makes a pure server, whose puts fail
        protocol            'tcp', or 'rdma' (docs/rdma.md)
        rdma_devices        with 'rdma': its network cards, 'mlx5_0,mlx5_1'; '' or 'auto' takes all that are up
        master_server_addr  'host:port' of the master
        Other arguments are accepted; those without effect in this release are named in the log. 0, or a negative code with one line in the log.
        """
        try:
            settings = _checked_settings(self._setup_arguments(args, kwargs))
            environment = _settings.Environment.read()
        except _settings.SettingError as error:
            _native.log_error(f"setup failed: {error}")
            return _INVALID_PARAMS
        code = self._open(
            **settings,
            cluster_token=environment.cluster_token,
            checksums=environment.checksums,
            paths=environment.paths,
            rdma=environment.rdma,
            operation_timeout_ms=environment.operation_timeout_ms,
            setup_timeout_ms=environment.setup_timeout_ms,
            handover_wait_ms=environment.handover_wait_ms,
        )
        if code == 0:
            _ending.remember(self)
        return code

    setup.__wrapped__ = _bind_setup  # what inspect.signature shows

    @staticmethod
    def _setup_arguments(args: tuple, kwargs: dict) -> dict:
        config = args[0] if len(args) == 1 and isinstance(args[0], dict) else kwargs.get("config") if not args else None
        if isinstance(config, dict):
            named = {_DICT_ALIASES.get(key, key): value for key, value in config.items()}
            named.update((key, value) for key, value in kwargs.items() if key != "config")
            for missing in [name for name in ("local_hostname", "metadata_server") if name not in named]:
                raise _settings.SettingError(f"the configuration lacks '{missing}'{_settings.nearest(missing, map(str, config))}")
            kwargs, args = {**_DICT_DEFAULTS, **named}, ()
        for name in [name for name in kwargs if name not in _PARAMETERS]:
            hint = _settings.nearest(str(name), _PARAMETERS)
            _native.log_warning(f"setup: argument '{name}' is unknown and has no effect{hint}")
        known = {name: value for name, value in kwargs.items() if name in _PARAMETERS}
        return _bind_setup(None, *args, **known)

    def init_all(self, arg0: str, arg1: str, arg2: int) -> int:
        """setup on this machine alone: (protocol, device names, bytes to lend), with etcd and the master on their default local ports."""
        return self.setup("localhost:12345", "127.0.0.1:2379", arg2, 1 << 30, arg0, arg1, "127.0.0.1:50051")

    def setup_dummy(self, mem_pool_size: int, local_buffer_size: int, server_address: str) -> int:
        """Would attach to a standalone store process; not in this release: -1012."""
        _native.log_error(
            "setup_dummy is not supported yet in this release: use setup() with global_segment_size=0 beside a standalone `mooncake_client`"
        )
        return _NOT_SUPPORTED

    def close(self) -> int:
        """Takes this process's memory out of the pool and waits, bounded, for calls in flight. 0, also when nothing was set up."""
        _ending.forget(self)
        return super().close()

    def _leave(self) -> None:
        self.close()

    def __enter__(self) -> MooncakeDistributedStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _text(arguments: dict, name: str, default: str | None = None) -> str:
    value = arguments[name]
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise TypeError(f"setup: {name} must be str, not {type(value).__name__}")
    return value.strip()


def _checked_settings(arguments: dict) -> dict:
    """The keyword arguments of _open that come from setup's."""
    for name in ("local_hostname", "master_server_addr"):
        if not _text(arguments, name):
            raise _settings.SettingError(f"{name} is empty: give 'host' or 'host:port'")
    for name in ("enable_ssd_offload", "enable_client_http_server"):
        if _settings.parse_bool(arguments[name], name):
            _native.log_warning(f"setup: {name} is not supported yet in this release: going on without")
    _settings.parse_port(arguments["client_http_port"], "client_http_port")
    for name in ("global_segment_size", "local_buffer_size"):
        if arguments[name] is None or isinstance(arguments[name], (list, tuple, dict, set)):
            raise TypeError(f"setup: {name} must be int, not {type(arguments[name]).__name__}")
    return {
        "local_hostname": _text(arguments, "local_hostname"),
        "metadata_server": _text(arguments, "metadata_server", ""),
        "master_address": _text(arguments, "master_server_addr"),
        "segment_size": _settings.parse_size(arguments["global_segment_size"], "global_segment_size"),
        "local_buffer_size": _settings.parse_size(arguments["local_buffer_size"], "local_buffer_size"),
        "protocol": _settings.check_protocol(_text(arguments, "protocol")),
        "device_names": _text(arguments, "rdma_devices", ""),
        "tenant": _text(arguments, "tenant_id", "default") or "default",
    }
