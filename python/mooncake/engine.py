"""mooncake.engine: moves bytes between registered memories of processes, as engines written for Mooncake use it.

The calls are C++ (mooncake._native.engine) and release the interpreter lock while they wait. Addresses and lengths are integers, in bytes. A
peer is named by its session id, "host:port" (host name and get_rpc_port()), or with a metadata server by the name it was initialised with.
"""

from __future__ import annotations

import json

from mooncake import _ending, _native, _settings
from mooncake._later import InnerTransferEngine, RpcInterface, SharedSegment, create_rpc_client, create_rpc_server, say_later  # noqa: F401
from mooncake._native.engine import Read, TransferNotify, TransferOpcode, Write  # noqa: F401

_native.configure_log("store", _settings.log_level())

SUPPORT_EFA = False
SUPPORT_HIP = False
SUPPORT_INTRA_NVLINK = False
SUPPORT_MNNVL = False
SUPPORT_MUSA = False


def __getattr__(name: str) -> bool:
    # Not a constant: CUDA comes into a process when its user loads it.
    if name == "SUPPORT_CUDA":
        return _native.engine.cuda_is_usable()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_METADATA_KINDS = ("etcd", "redis", "http", "p2p", "P2PHANDSHAKE")


class TransferEngine(_native.engine.TransferEngine):
    """One process's end of transfers. Any number of threads may call it; registered memory must outlive its registration."""

    def initialize(self, arg0: str, arg1: str, arg2: str, arg3: str) -> int:
        """(host name, metadata server or 'P2PHANDSHAKE', protocol, device names). 0, or -1 with the reason in the log."""
        for value in (arg0, arg1, arg2, arg3):
            if not isinstance(value, str):
                raise TypeError(f"initialize: the arguments must be str, not {type(value).__name__}")
        try:
            protocol = _settings.check_protocol(arg2)
            environment = _settings.Environment.read()
        except _settings.SettingError as error:
            _native.log_error(f"TransferEngine.initialize failed: {error}")
            return -1
        code = self._initialize(
            hostname=arg0.strip(),
            metadata=arg1.strip(),
            protocol=protocol,
            devices=arg3.strip(),
            rdma=environment.rdma,
            paths=environment.paths,
            cluster_token=environment.cluster_token,
            timeout_ms=environment.transfer_timeout_ms,
        )
        if code == 0:
            _ending.remember(self)
        return code

    def initialize_ext(self, arg0: str, arg1: str, arg2: str, arg3: str, arg4: str) -> int:
        """As initialize, with the kind of the metadata server last: 'etcd', 'redis', 'http' or 'p2p'."""
        if not isinstance(arg1, str) or not isinstance(arg4, str):
            raise TypeError("initialize_ext: the arguments must be str")
        kind = arg4.strip().lower()
        if kind in ("p2p", "p2phandshake"):
            return self.initialize(arg0, "P2PHANDSHAKE", arg2, arg3)
        if kind not in _METADATA_KINDS:
            hint = _settings.nearest(kind, _METADATA_KINDS)
            _native.log_error(f"TransferEngine.initialize_ext failed: unknown metadata type '{arg4}'{hint}; right are etcd, redis, http, p2p")
            return -1
        return self.initialize(arg0, arg1 if "://" in arg1 else f"{kind}://{arg1}", arg2, arg3)

    def _leave(self) -> None:
        self._shut_down()

    def get_local_topology(self, device_name: str | None = None) -> str:
        """JSON: for each place of memory ("cpu:0" is NUMA node 0) the nearest and the other network cards that transfers use; over tcp there is
        nothing to choose. `device_name`: only these, with commas."""
        wanted = [name.strip() for name in (device_name or "").split(",") if name.strip()]
        nics = [(name, node) for name, node in self._nics() if not wanted or name in wanted]
        places = sorted({max(node, 0) for _, node in nics} | {0})
        # A card whose place is unknown is as near to one as to another.
        near = {place: [name for name, node in nics if node in (place, -1)] for place in places}
        return json.dumps({f"cpu:{place}": [near[place], [name for name, _ in nics if name not in near[place]]] for place in places})

    def get_engine(self) -> InnerTransferEngine | None:
        """Would share this engine with C++ code of the incumbent; None in this release."""
        say_later("TransferEngine.get_engine")
        return None

    def get_engine_ptr(self) -> int:
        """As get_engine, by address; 0 in this release."""
        say_later("TransferEngine.get_engine_ptr")
        return 0

    def warmup_efa_segment(self, segment_name: str) -> int:
        """-1: there is no EFA in this release."""
        say_later("TransferEngine.warmup_efa_segment")
        return -1
