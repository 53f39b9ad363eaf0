"""A pool with its vLLM instances and gateway on this machine: what `up`, `--smoke` and the end-to-end tests start.

A Cluster owns its processes through a Supervisor. It is used from one thread, as a context manager; leaving it stops everything.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moonpool import http_client, vllm_instance
from moonpool.console import Row, board
from moonpool.errors import UserError
from moonpool.paths import MASTER, MOONPOOL
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component, Supervisor
from moonpool.provision import Vllm
from moonpool.vllm_instance import Instance

READY_SECONDS = 20.0
POLL_SECONDS = 0.1
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")


@dataclass(frozen=True)
class Programs:
    """The executables of the pool."""

    moonpool: Path = MOONPOOL
    master: Path = MASTER


@dataclass
class PoolSettings:
    """How the pool is to be reached. Empty values are chosen and started here."""

    protocol: str = "tcp"
    metadata_server: str = ""
    config: Path | None = None
    host: str = "127.0.0.1"
    segment_bytes: int = 1 << 30
    buffer_bytes: int = 256 << 20


@dataclass
class Cluster:
    """See the module. `served_name` is the model's name for clients; `threads` are each CPU instance's."""

    vllm: Vllm
    model: Path
    run_folder: Path
    pool: PoolSettings = field(default_factory=PoolSettings)
    programs: Programs = field(default_factory=Programs)
    tensor_parallel: int = 1
    threads: int = 1
    supervisor: Supervisor = field(default_factory=Supervisor)
    instances: dict[str, Instance] = field(default_factory=dict)
    master_address: str = ""
    admin_url: str = ""
    config_path: Path | None = None
    gateway_url: str = ""

    @property
    def served_name(self) -> str:
        return self.model.name

    def __enter__(self) -> Cluster:
        self.run_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.supervisor.__exit__(*exception)

    # -- the pool

    def start_pool(self) -> None:
        """The master, and the mooncake.json that tells the instances where it is; or the pool that a given config names."""
        if self.pool.config is not None:
            self._use_config(self.pool.config)
            return
        port, admin_port, metadata_port = pick_free(3)
        self.master_address = f"{self.pool.host}:{port}"
        metadata = self.pool.metadata_server or f"http://{self.pool.host}:{metadata_port}/metadata"
        self._start_master(port, admin_port, 0 if self.pool.metadata_server else metadata_port)
        self.config_path = self.run_folder / "mooncake.json"
        self.config_path.write_text(
            json.dumps(
                {
                    "local_hostname": self.pool.host,
                    "metadata_server": metadata,
                    "protocol": self.pool.protocol,
                    "device_name": "",
                    "master_server_address": self.master_address,
                    "global_segment_size": self.pool.segment_bytes,
                    "local_buffer_size": self.pool.buffer_bytes,
                },
                indent=2,
            )
        )

    def _use_config(self, path: Path) -> None:
        try:
            self.master_address = json.loads(path.read_text())["master_server_address"]
            host, _, port_text = self.master_address.rpartition(":")
            port = int(port_text)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no usable master_server_address: {error}", 'it is JSON with "master_server_address": "host:port"; see the README'
            ) from error
        self.config_path = path.resolve()
        if accepts(host.strip("[]"), port):
            board.say(f"  using the master at {self.master_address} that {path} names")
        elif host in LOCAL_HOSTS:
            self._start_master(port, pick_free(1)[0], 0)
        else:
            raise UserError(f"no master answers at {self.master_address}, which {path} names", "start it there: mooncake_master --port " + port_text)

    def _start_master(self, port: int, admin_port: int, metadata_port: int) -> None:
        host = self.pool.host
        argv: list[str | Path] = [self.programs.master, "--rpc_address", host, "--port", str(port)]
        argv += ["--metrics_host", host, "--metrics_port", str(admin_port)]
        if metadata_port:
            argv += ["--enable_http_metadata_server", "--http_metadata_server_host", host, "--http_metadata_server_port", str(metadata_port)]
        self.admin_url = f"http://{host}:{admin_port}"
        self.start_and_wait(Component("master", argv, self.run_folder / "master.log"), lambda: accepts(host, port), self.master_address or f"{host}:{port}")

    # -- instances

    def add_instance(self, name: str, role: str, *, tensor_parallel: int | None = None, host: str = "") -> Instance:
        """Start one instance without waiting for it. Devices are handed out in the order of starting."""
        width = tensor_parallel or self.tensor_parallel
        first = sum(len(other.gpus) for other in self.instances.values())
        instance = Instance(
            name=name,
            role=role,
            port=pick_free(1)[0],
            model=self.model,
            served_name=self.served_name,
            config=self.config_path if role else None,
            host=host or self.pool.host,
            tensor_parallel=width,
            gpus=self.vllm.gpus[first : first + width],
            threads=self.threads,
        )
        if self.vllm.gpus and len(instance.gpus) < width:
            raise UserError(
                f"{name} needs {width} GPU(s), and {len(self.vllm.gpus) - first} of {len(self.vllm.gpus)} are left",
                "start fewer instances (--prefill, --decode, --kv-both) or a smaller --tp",
            )
        self.instances[name] = instance
        self.supervisor.start(vllm_instance.component(instance, self.vllm, self.run_folder))
        return instance

    def component(self, name: str) -> Component:
        return next(component for component in self.supervisor.components if component.name == name)

    def wait_for_instances(self, names: Sequence[str] | None = None) -> None:
        """Wait until every named instance (default: all) serves; one live line each."""
        waiting = {name: board.row(f"vLLM {name}") for name in (names or self.instances)}
        deadline = time.monotonic() + vllm_instance.START_SECONDS
        try:
            while waiting:
                self.supervisor.check()
                for name in [name for name in waiting if http_client.is_healthy(self.instances[name].url + "/health")]:
                    waiting.pop(name).done(self.instances[name].url)
                self._show_progress(waiting)
                if time.monotonic() > deadline:
                    name = next(iter(waiting))
                    raise UserError(f"vLLM {name} does not serve after {vllm_instance.START_SECONDS:.0f} s", f"see {self.component(name).log}")
                time.sleep(POLL_SECONDS)
        finally:
            for row in waiting.values():
                row.fail("not started")

    def _show_progress(self, waiting: dict[str, Row]) -> None:
        for name, row in waiting.items():
            row.update(last_words(self.component(name).log))

    # -- gateway

    def start_gateway(self, prefill: Sequence[str], decode: Sequence[str], port: int, environment: dict[str, str] | None = None) -> None:
        """The gateway before the named instances; it need not wait for them to be up."""
        argv: list[str | Path] = [self.programs.moonpool, "gateway", "--model", self.served_name, "--host", self.pool.host, "--port", str(port)]
        argv += ["--prefill", *(self.instances[name].address for name in prefill)]
        argv += ["--decode", *(self.instances[name].address for name in decode)]
        self.gateway_url = f"http://{self.pool.host}:{port}"
        gateway = Component("gateway", argv, self.run_folder / "gateway.log", environment or {})
        self.start_and_wait(gateway, lambda: accepts(self.pool.host, port), self.gateway_url)

    def start_and_wait(self, component: Component, ready: Callable[[], bool], note: str = "") -> None:
        """Start a component that is up within seconds, and wait for that."""
        with board.row(component.name) as row:
            self.supervisor.start(component)
            deadline = time.monotonic() + READY_SECONDS
            while not ready():
                if not component.running:
                    raise component.died()
                if time.monotonic() > deadline:
                    raise UserError(f"{component.name} is not ready after {READY_SECONDS:.0f} s", f"see {component.log}")
                time.sleep(POLL_SECONDS / 2)
            row.update(note)


def last_words(log: Path) -> str:
    """The end of a log as a remark: its last line, without the prefix that vLLM puts before each."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 500))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].rpartition("] ")[2] if lines else ""


def segment_bytes(instances: int, available: int | None = None) -> int:
    """Memory that each instance lends: an eighth of what is available, shared; whole multiples of 256 MiB from 512 MiB to 16 GiB."""
    if available is None:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) << 10
    step = 256 << 20
    share = available // 8 // max(1, instances) // step * step
    return min(max(share, 2 * step), 64 * step)
