"""KV handed over from one vLLM to another without a pool: NixlConnector on both sides, the gateway carrying what prefill answers to decode.
The prefill instance publishes its KV events, and the gateway's index of it follows them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from clusters import ClusterKeeper, Reference, completion_body, completion_text, short_prompt, started
from moonpool import vllm_instance
from moonpool.cluster import Cluster
from moonpool.http_client import get, post, stream_events
from moonpool.paths import MOONPOOL
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component
from moonpool.prompts import endless_prompt
from moonpool.provision import Vllm, uv_install
from moonpool.vllm_instance import BOTH, PLAIN, Instance
from moonpool.vllm_metrics import parse_samples
from second_gateway import wait_until

pytestmark = pytest.mark.cluster("nixl")
NIXL = ("nixl==1.5.1", "nixl-cu12==1.5.1")
TRANSFER = {"kv_connector": "NixlConnector", "kv_role": BOTH, "kv_buffer_device": "cpu"}


def ensure_nixl(vllm: Vllm) -> None:
    """Into vLLM's environment, without the packages for GPUs that it names; its UCX works without one."""
    try:
        importlib.metadata.version("nixl-cu12")
    except importlib.metadata.PackageNotFoundError:
        uv_install("install nixl", ["--no-deps", *NIXL], python=vllm.python)


def add_instance(cluster: Cluster, name: str, *flags: str) -> None:
    """As Cluster.add_instance, with the peer-to-peer connector."""
    port, side_channel = pick_free(2)
    instance = Instance(name, PLAIN, port, cluster.model, cluster.served_name)
    made = vllm_instance.component(instance, cluster.vllm, cluster.run_folder)
    environment = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_channel), "UCX_NET_DEVICES": "lo"}
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # POST /reset_prefix_cache
    argv = [*made.argv, "--kv-transfer-config", json.dumps(TRANSFER), *flags]
    cluster.instances[name] = instance
    cluster.supervisor.start(dataclasses.replace(made, argv=argv, environment={**made.environment, **environment}))


def nixl_cluster(vllm: Vllm, model: Path, folder: Path) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(vllm, model, folder)

    def start() -> None:
        port, events, replay = pick_free(3)
        published = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": "kv-events"}
        published |= {"endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}"}  # vLLM connects to any other address
        add_instance(cluster, "prefill-1", "--kv-events-config", json.dumps(published))
        add_instance(cluster, "decode-1")
        cluster.wait_for_instances()
        prefill = {"instances": [cluster.instances["prefill-1"].address], "kv_events": {"port": events, "replay_port": replay, "topic": "kv-events"}}
        decode = {"instances": [cluster.instances["decode-1"].address]}
        config = folder / "gateway.json"
        config.write_text(json.dumps({"groups": {"prefill": prefill, "decode": decode}, "kv_transfer": "nixl"}))
        argv = [str(MOONPOOL), "gateway", "--model", cluster.served_name, "--port", str(port), "--config", str(config), "--access-log"]
        cluster.gateway_url = f"http://127.0.0.1:{port}"
        cluster.start_and_wait(Component("gateway", argv, folder / "gateway.log"), lambda: accepts("127.0.0.1", port))

    started(cluster.supervisor, start)
    return cluster


@pytest.fixture
def nixl(vllm: Vllm, smollm2: Path, keeper: ClusterKeeper, reference: Reference) -> Cluster:
    reference.short_texts()
    ensure_nixl(vllm)
    return keeper.use("nixl", lambda folder: nixl_cluster(vllm, smollm2, folder))


def known_of_prefill(cluster: Cluster) -> dict[str, Any]:
    """What the gateway knows of the prefill instance by its events."""
    return next(one["kv_events"] for one in get(cluster.gateway_url + "/instances").json["instances"] if one["type"] == "prefill")


def external_hits(cluster: Cluster, name: str) -> float:
    return parse_samples(get(cluster.instances[name].url + "/metrics").text).get("vllm:external_prefix_cache_hits_total", 0)


def introduce(cluster: Cluster) -> None:
    """Until decode has taken a prompt from prefill. Their first handshake has to be done within vLLM's five seconds, which a busy machine
    does not always allow; such a request is answered all the same, computed by decode."""
    for prompt in range(910, 920):
        before = external_hits(cluster, "decode-1")
        completion_text(cluster.gateway_url, cluster.served_name, endless_prompt(prompt, told=8), 2)
        if external_hits(cluster, "decode-1") > before:
            return
    pytest.fail("decode-1 has taken no prompt from prefill-1")


def test_decode_has_the_prompt_from_prefill_and_answers_as_a_plain_vllm(nixl: Cluster, reference: Reference) -> None:
    introduce(nixl)
    handed_over = get(nixl.gateway_url + "/status").json["counters"]["kv_handed_over"]
    for prompt, expected in enumerate(reference.short_texts()[:3]):
        before = external_hits(nixl, "decode-1")
        answer = post(nixl.gateway_url + "/v1/completions", completion_body(nixl.served_name, short_prompt(prompt)), timeout=300)
        assert answer.status == 200, answer.text
        assert answer.json["choices"][0]["text"] == expected
        # All whole blocks of 128 tokens, and with this connector the started one too.
        assert external_hits(nixl, "decode-1") - before >= answer.json["usage"]["prompt_tokens"] // 128 * 128 - 128
    counters = get(nixl.gateway_url + "/status").json["counters"]
    assert counters["kv_handed_over"] == handed_over + 3 and counters["prefill_given_up"] == 0, counters


def test_a_stream_and_a_request_for_several_choices_are_answered_too(nixl: Cluster, reference: Reference) -> None:
    expected = reference.short_texts()
    text = ""
    for event in stream_events(nixl.gateway_url + "/v1/completions", completion_body(nixl.served_name, short_prompt(3), stream=True), 300):
        if event == "[DONE]":
            break
        text += json.loads(event)["choices"][0]["text"]
    else:
        pytest.fail("the stream ended without [DONE]")
    assert text == expected[3]
    # One transfer carries one sequence, so these have no prefill hop.
    body = {**completion_body(nixl.served_name, ""), "prompt": [short_prompt(4), short_prompt(5)]}
    answer = post(nixl.gateway_url + "/v1/completions", body, timeout=300)
    assert answer.status == 200, answer.text
    assert [choice["text"] for choice in answer.json["choices"]] == expected[4:6]


def test_the_gateways_index_follows_the_prefill_instances_events(nixl: Cluster) -> None:
    wait_until("the gateway follows all that the instance has", 20, lambda: known_of_prefill(nixl)["whole"])
    # The first prompt after the start teaches the block size.
    before = known_of_prefill(nixl)["blocks"]
    completion_text(nixl.gateway_url, nixl.served_name, endless_prompt(900, told=8), 2)
    wait_until("its blocks are announced", 20, lambda: known_of_prefill(nixl)["blocks"] >= before + 4)
    assert post(nixl.instances["prefill-1"].url + "/reset_prefix_cache", {}).status == 200
    # vLLM tells with its next step.
    before = known_of_prefill(nixl)["blocks"]
    completion_text(nixl.gateway_url, nixl.served_name, endless_prompt(901, told=8), 2)
    wait_until("the gateway knows that all before was forgotten", 20, lambda: 0 < known_of_prefill(nixl)["blocks"] < before)


def test_a_prefill_instance_that_was_killed_costs_a_computed_prompt(nixl: Cluster, reference: Reference) -> None:
    nixl.component("prefill-1").kill()
    assert completion_text(nixl.gateway_url, nixl.served_name, short_prompt(5)) == reference.short_texts()[5]
    assert get(nixl.gateway_url + "/status").json["counters"]["prefill_given_up"] == 1
