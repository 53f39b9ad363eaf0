"""./moonpool up: from a bare machine to an answer that went through prefill, pool and decode."""

from __future__ import annotations

import argparse
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from moonpool import http_client, smoke
from moonpool.building import ensure_wheel
from moonpool.cluster import Cluster, PoolSettings, segment_bytes
from moonpool.console import board, format_seconds
from moonpool.errors import UserError
from moonpool.models import SMOLLM2, TINY_FOUR_HEADS, ensure_model
from moonpool.paths import RUNS
from moonpool.ports import require_free
from moonpool.prompts import endless_prompt
from moonpool.provision import Vllm, ensure_vllm
from moonpool.vllm_instance import BOTH, CONSUMER, PLAIN, PRODUCER
from moonpool.vllm_metrics import read_counters

WATCH_SECONDS = 0.5
FIRST_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Groups:
    """Names of the instances, by what the gateway uses them for. kv_both instances are in both groups."""

    prefill: list[str]
    decode: list[str]
    both: list[str]

    @property
    def roles(self) -> dict[str, str]:
        prefill = {name: PRODUCER for name in self.prefill if name not in self.both}
        decode = {name: CONSUMER for name in self.decode if name not in self.both}
        return {**prefill, **decode, **{name: BOTH for name in self.both}}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./moonpool up",
        description="Builds and installs what is missing, then starts a master, vLLM instances and a gateway, and shows a first answer. "
        "Ctrl-C stops everything.",
    )
    parser.add_argument("--prefill", type=int, metavar="N", help="prefill instances (kv_producer); 1 unless --kv-both is given")
    parser.add_argument("--decode", type=int, metavar="N", help="decode instances (kv_consumer); 1 unless --kv-both is given")
    parser.add_argument("--kv-both", type=int, default=0, metavar="N", help="instances that do both (kv_both)")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks of each instance")
    parser.add_argument("--model", metavar="DIR", help="model directory, or a name that vLLM can load (default: a small one is made)")
    parser.add_argument("--metadata", default="", metavar="URL", help="etcd://, redis:// or http:// metadata server (default: the master's own)")
    parser.add_argument("--port", type=int, default=8000, help="the gateway's port (default 8000)")
    parser.add_argument("--protocol", default="tcp", help="tcp or rdma (default tcp)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a mooncake.json of your own, for all instances")
    parser.add_argument("--vllm-python", type=Path, metavar="PATH", help="python3 of an environment that has vLLM, instead of our own")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto takes the GPUs when there are any")
    parser.add_argument("--smoke", action="store_true", help="run the acceptance, print one JSON line, stop everything")
    options = parser.parse_args(arguments)
    default = 0 if options.kv_both else 1
    options.prefill = default if options.prefill is None else options.prefill
    options.decode = default if options.decode is None else options.decode
    if options.tp < 1 or min(options.prefill, options.decode, options.kv_both) < 0:
        parser.error("the numbers of instances and ranks are not negative, and --tp is at least 1")
    if options.prefill + options.kv_both == 0 or options.decode + options.kv_both == 0:
        parser.error("at least one instance has to prefill and one to decode")
    if options.config and options.metadata:
        parser.error("--config names the metadata server already: leave --metadata out")
    return options


def plan_groups(options: argparse.Namespace) -> Groups:
    both = [f"both-{number + 1}" for number in range(options.kv_both)]
    prefill = [f"prefill-{number + 1}" for number in range(options.prefill)]
    decode = [f"decode-{number + 1}" for number in range(options.decode)]
    return Groups(prefill + both, decode + both, both)


def choose_model(options: argparse.Namespace, vllm: Vllm) -> Path:
    if not options.model:
        # SmolLM2's 9 heads divide by 3 only.
        return ensure_model(SMOLLM2 if options.tp in (1, 3) else TINY_FOUR_HEADS, vllm)
    path = Path(options.model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"--model {path}: there is no config.json in it", "give a model directory in the format of Hugging Face")
        return path.resolve()
    if options.model.startswith((".", "/", "~")):
        raise UserError(f"--model {path}: there is no such directory", "give a model directory, or a name that vLLM can load from a hub")
    return path


def _threads(instances: int, vllm: Vllm) -> int:
    return 1 if vllm.gpus else max(1, (os.cpu_count() or 1) // instances)


def first_request(cluster: Cluster, groups: Groups) -> None:
    """Send one long prompt through the gateway and say what came of it."""
    prompt = endless_prompt(0, told=10)
    before = {name: read_counters(cluster.instances[name].url) for name in groups.decode}
    started = time.monotonic()
    body = {"model": cluster.served_name, "prompt": prompt, "max_tokens": FIRST_ANSWER_TOKENS, "temperature": 0}
    answer = http_client.post(cluster.gateway_url + "/v1/completions", body)
    elapsed = time.monotonic() - started
    if answer.status != 200:
        raise UserError(f"the first request was answered with {answer.status}: {answer.text[:500]}", f"see the logs in {cluster.run_folder}")
    changes = [read_counters(cluster.instances[name].url) - before[name] for name in groups.decode]
    served = max(changes, key=lambda change: change.first_tokens)
    content = answer.json
    board.say(f"\nprompt ({content['usage']['prompt_tokens']} tokens): {prompt[:60]} ... {prompt[-60:]}")
    board.say(f"answer: {content['choices'][0]['text'].strip()}")
    board.say(
        f"whole request {format_seconds(elapsed)}; decode's first token {format_seconds(served.time_to_first_token)} after it got the request; "
        f"external cache hit rate {served.external_hit_rate:.1%}"
    )


def print_curl(cluster: Cluster) -> None:
    board.say(
        f"\nTry it yourself (Ctrl-C here stops everything; logs are in {cluster.run_folder}):\n\n"
        f"curl -s {cluster.gateway_url}/v1/completions -H 'Content-Type: application/json' -d '{{\n"
        f'  "model": "{cluster.served_name}", "prompt": "San Francisco is a", "max_tokens": 50\n'
        "}'\n"
    )


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _start_everything(cluster: Cluster, groups: Groups, port: int) -> None:
    started = time.monotonic()
    cluster.start_pool()
    for name, role in groups.roles.items():
        cluster.add_instance(name, role)
    cluster.start_gateway(groups.prefill, groups.decode, port)
    board.say(f"  pool and gateway are up after {format_seconds(time.monotonic() - started)}; vLLM loads its model")


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    require_free(options.port, "the gateway", "--port")
    # A shell starts background jobs with SIGINT ignored; an explicit handler makes it stop us there as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    ensure_wheel()
    vllm = ensure_vllm(options.vllm_python, options.device)
    model = choose_model(options, vllm)
    groups = plan_groups(options)
    count = len(groups.roles) + (1 if options.smoke else 0)
    pool = PoolSettings(
        protocol=options.protocol, metadata_server=options.metadata, config=options.config, segment_bytes=segment_bytes(len(groups.roles))
    )
    run_folder = RUNS / time.strftime("%Y%m%d-%H%M%S")
    with Cluster(vllm, model, run_folder, pool, tensor_parallel=options.tp, threads=_threads(count, vllm)) as cluster:
        _start_everything(cluster, groups, options.port)
        if options.smoke:
            cluster.add_instance(smoke.BASELINE, PLAIN)
        cluster.wait_for_instances()
        if options.smoke:
            return smoke.run(cluster, groups.decode)
        first_request(cluster, groups)
        print_curl(cluster)
        while True:
            cluster.supervisor.check()
            time.sleep(WATCH_SECONDS)
