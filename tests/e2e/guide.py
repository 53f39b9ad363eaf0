"""The serving guide as a user types it: its own command lines, with ports, model and the CPU's environment changed and nothing else.

Each command is kept as the line of shell that the guide prints, so that a reader can lay the two side by side.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from clusters import SEGMENT_BYTES
from moonpool import vllm_instance
from moonpool.cluster import Cluster
from moonpool.http_client import is_healthy
from moonpool.paths import ROOT, VENV
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component
from moonpool.provision import Vllm
from moonpool.vllm_instance import CONSUMER, PRODUCER, Instance

ADMIN_API_KEY = "xxxxxxxx"

ETCD = "etcd --listen-client-urls http://0.0.0.0:{port} --advertise-client-urls http://localhost:{port}"
REDIS = "redis-server --port {port} --bind 127.0.0.1 --save '' --dir {folder}"
HTTP = "mooncake_http_metadata_server --port {port}"
MASTER = "mooncake_master --port {port} --metrics_port {metrics}"
VLLM = (
    "MOONCAKE_CONFIG_PATH=./mooncake.json VLLM_USE_V1=0 {env} python3 -m vllm.entrypoints.openai.api_server --model {model} --port {port} "
    "--max-model-len 4096 --gpu-memory-utilization 0.8 --enforce-eager {precision} "
    """--kv-transfer-config '{{"kv_connector":"MooncakeStoreConnector","kv_role":"{role}"}}'"""
)
PROXY = (
    'ADMIN_API_KEY="{key}" python3 {root}/examples/disagg_proxy_demo.py --model {model} --prefill {prefill} --decode {decode} '
    "--port {port} --scheduling round_robin"
)
ADD = (
    'curl -s -X POST "{url}/instances/add" -H "Content-Type: application/json" -H "X-API-Key: $ADMIN_API_KEY" '
    """-d '{{"type": "{kind}", "instance": "{instance}"}}' -w '\\n%{{http_code}}'"""
)

# The roles of two prefill and two decode instances.
FOUR = {"prefill-1": PRODUCER, "prefill-2": PRODUCER, "decode-1": CONSUMER, "decode-2": CONSUMER}


def shell(line: str) -> str:
    """What a user's shell prints for this line."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin", "ADMIN_API_KEY": ADMIN_API_KEY})
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


class Guide:
    """The guide's stack with one metadata backend. `served_name` is the model's path, as the guide's --model is."""

    def __init__(self, vllm: Vllm, model: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cluster = Cluster(vllm, model, folder)
        self.supervisor = self.cluster.supervisor
        self.folder = folder
        self.model = str(model)
        self.gateway_url = ""
        self.master_address = ""

    @property
    def instances(self) -> dict[str, Instance]:
        return self.cluster.instances

    def component(self, name: str) -> Component:
        return self.cluster.component(name)

    def shell(self, name: str, line: str, ready: Callable[[], bool] | None = None, **environment: str) -> Component:
        """Start a line of shell in the folder where mooncake.json lies, and wait for it if asked to."""
        # exec, so that the process we know is the program itself and not the shell before it.
        words = line.split(" ")
        first = next(number for number, word in enumerate(words) if "=" not in word or word.startswith("-"))
        line = " ".join([*words[:first], "exec", *words[first:]])
        path = f"{self.cluster.vllm.python.parent}:{VENV / 'bin'}:{os.environ['PATH']}"
        component = Component(name, ["bash", "-c", f"cd {self.folder} && {line}"], self.folder / f"{name}.log", {"PATH": path, **environment})
        if ready is None:
            self.supervisor.start(component)
        else:
            self.cluster.start_and_wait(component, ready)
        return component

    # -- the guide's steps

    def start_metadata(self, kind: str) -> str:
        """1. Start the etcd server (or redis, or http); returns the metadata_server for mooncake.json."""
        port, peer = pick_free(2)
        if kind == "etcd":
            url = f"http://127.0.0.1:{peer}"
            state = {"ETCD_DATA_DIR": str(self.folder / "etcd"), "ETCD_LISTEN_PEER_URLS": url}
            self.shell("etcd", ETCD.format(port=port), lambda: is_healthy(f"http://127.0.0.1:{port}/health"), **state)
            return f"etcd://127.0.0.1:{port}"
        if kind == "redis":
            self.shell("redis", REDIS.format(port=port, folder=self.folder), lambda: accepts("127.0.0.1", port))
            return f"redis://127.0.0.1:{port}"
        self.shell("metadata", HTTP.format(port=port), lambda: accepts("127.0.0.1", port))
        return f"http://127.0.0.1:{port}/metadata"

    def start_master(self) -> None:
        """2. Start the mooncake_master server."""
        port, metrics = pick_free(2)
        self.shell("master", MASTER.format(port=port, metrics=metrics), lambda: accepts("127.0.0.1", port))
        self.master_address = f"127.0.0.1:{port}"
        self.cluster.admin_url = f"http://127.0.0.1:{metrics}"

    def write_config(self, metadata_server: str) -> None:
        """mooncake.json of the section about TCP. The sizes are ours: the default of 4 GiB twice per instance is too much for one machine."""
        config = {
            "local_hostname": "127.0.0.1",
            "metadata_server": metadata_server,
            "protocol": "tcp",
            "device_name": "",
            "master_server_address": self.master_address,
            "global_segment_size": SEGMENT_BYTES,
            "local_buffer_size": 256 << 20,
        }
        (self.folder / "mooncake.json").write_text(json.dumps(config, indent=4))

    def add_instance(self, name: str, role: str) -> None:
        """3. Run a vllm instance; does not wait."""
        port = pick_free(1)[0]
        instance = Instance(name, role, port, Path(self.model), self.model)
        env = vllm_instance.environment(instance, self.cluster.vllm)
        environment, precision = " ".join(f"{key}={value}" for key, value in env.items()), " ".join(vllm_instance.precision())
        line = VLLM.format(env=environment, precision=precision, model=self.model, port=port, role=role)
        self.instances[name] = instance
        self.shell(name, line).scratch = Path(env[vllm_instance.SOCKET_FOLDER])

    def start_proxy(self, prefill: Sequence[str], decode: Sequence[str]) -> None:
        """4. Start the proxy server."""
        port = pick_free(1)[0]
        names = {"prefill": " ".join(self.local(name) for name in prefill), "decode": " ".join(self.local(name) for name in decode)}
        self.gateway_url = f"http://localhost:{port}"
        self.shell("proxy", PROXY.format(key=ADMIN_API_KEY, root=ROOT, model=self.model, port=port, **names), lambda: accepts("127.0.0.1", port))

    def local(self, name: str) -> str:
        """An instance as the guide writes it: localhost:8100."""
        return f"localhost:{self.instances[name].port}"

    def start(self, metadata: str, roles: dict[str, str], proxied: tuple[Sequence[str], Sequence[str]]) -> None:
        """All four steps."""
        metadata_server = self.start_metadata(metadata)
        self.start_master()
        self.write_config(metadata_server)
        for name, role in roles.items():
            self.add_instance(name, role)
        self.cluster.wait_for_instances()
        self.start_proxy(*proxied)
