"""One vLLM instance: its command line and environment, for a GPU or for the CPU, with a connector or plain.

The command is the serving guide's own, `python3 -m vllm.entrypoints.openai.api_server`.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

from moonpool.processes import Component
from moonpool.provision import Vllm

START_SECONDS = 900.0
MAX_MODEL_LEN = 4096
CPU_KV_CACHE_GIB = 1

SOCKET_FOLDER = "VLLM_RPC_BASE_PATH"

PRODUCER = "kv_producer"
CONSUMER = "kv_consumer"
BOTH = "kv_both"
PLAIN = ""


@dataclass(frozen=True)
class Instance:
    """What one instance is to be. `role` PLAIN is a vLLM without any connector; `config` is its mooncake.json."""

    name: str
    role: str
    port: int
    model: Path
    served_name: str
    config: Path | None = None
    host: str = "127.0.0.1"
    tensor_parallel: int = 1
    gpus: tuple[str, ...] = ()
    threads: int = 1

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@functools.cache
def without_bfloat16() -> bool:
    """Whether this is an x86 without AVX-512, for which oneDNN has no bfloat16 kernel: a long prompt then takes eight times as long."""
    if platform.machine() != "x86_64":
        return False
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return "avx512bw" not in flags.split()


def precision() -> list[str]:
    """vLLM's flag for the precision that this CPU is made for; empty where the model's own is."""
    return ["--dtype", "float32"] if without_bfloat16() else []


def command(instance: Instance, vllm: Vllm) -> list[str]:
    """The guide's command line for this instance."""
    argv = [str(vllm.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(instance.model)]
    argv += ["--served-model-name", instance.served_name, "--host", instance.host, "--port", str(instance.port)]
    if vllm.gpus:
        argv += ["--gpu-memory-utilization", "0.8"]
    else:
        argv += ["--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN), *precision()]
    if instance.tensor_parallel > 1:
        argv += ["-tp", str(instance.tensor_parallel)]
    if instance.role:
        # Blocks whose holder has just died are computed again; vLLM's default fails the request that wanted them.
        transfer = {"kv_connector": "MooncakeStoreConnector", "kv_role": instance.role, "kv_load_failure_policy": "recompute"}
        argv += ["--kv-transfer-config", json.dumps(transfer)]
    return argv


def environment(instance: Instance, vllm: Vllm) -> dict[str, str]:
    """What the instance needs in its environment.

    PYTHONHASHSEED is the same everywhere, or the instances' block hashes differ. VLLM_RPC_BASE_PATH is each instance's own: the
    connector's lookup socket has the same name in every instance of a host, and one would answer for, and die with, another.
    """
    env = {
        **vllm.environment,
        "PYTHONHASHSEED": "0",
        "VLLM_HOST_IP": instance.host,
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        SOCKET_FOLDER: tempfile.mkdtemp(prefix="moonpool-"),
    }
    if instance.config is not None:
        env["MOONCAKE_CONFIG_PATH"] = str(instance.config)
    if instance.model.is_dir():
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if vllm.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(instance.gpus)
    else:
        # Prefill and decode of one request take turns, so all may have all cores where these are slow: threads that wait do not spin.
        threads = (os.cpu_count() or 1) if without_bfloat16() else instance.threads
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return env


def component(instance: Instance, vllm: Vllm, log_folder: Path) -> Component:
    """The instance as something that a Supervisor can start."""
    env = environment(instance, vllm)
    return Component(instance.name, command(instance, vllm), log_folder / f"{instance.name}.log", env, Path(env[SOCKET_FOLDER]))
