"""The gateway's promises on real vLLM, beyond kill -9: an instance that is stopped (SIGSTOP), a client that goes away, a drain under a stream,
two gateways side by side, the default policy, and instances that come and go in etcd."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from clusters import Reference, completion_body, completion_text, short_prompt
from guide import Guide
from moonpool.http_client import get, post
from moonpool.measuring import in_bounds
from moonpool.prompts import endless_prompt
from moonpool.vllm_metrics import parse_samples, read_counters
from second_gateway import INSTANCES, SecondGateway, second_gateway, wait_until
from traffic import Traffic, check_fates

pytestmark = pytest.mark.cluster("guide-etcd")

CANCELLED_SECONDS = 0.1
# Short enough that a test sees them expire, long beside what two cores take for a short prompt.
DEADLINES = ("--prefill-timeout", "30", "--first-byte-timeout", "30", "--between-bytes-timeout", "15")


@pytest.mark.parametrize("victim", ["prefill-2", "decode-2"])
def test_a_stopped_instance_costs_time_and_no_answer(victim: str, both_of_each: Guide, reference: Reference) -> None:
    guide, expected = both_of_each, reference.short_texts()
    stopped = guide.component(victim)
    with second_gateway(guide, *DEADLINES, "--scheduling", "round_robin") as gateway:
        with Traffic(gateway.url, guide.model, len(expected)) as traffic:
            traffic.wait_for(4, 120)
            stopped.signal_group(signal.SIGSTOP)
            try:
                failed = wait_until(f"{victim} is noticed", 120, lambda: gateway.status(guide.local(victim))["errors_by_cause"]["timeout"])
                traffic.wait_for(6, 180)
            finally:
                stopped.signal_group(signal.SIGCONT)
            served = gateway.status(guide.local(victim))["latency"]["count"]
            wait_until(f"{victim} serves again", 120, lambda: gateway.status(guide.local(victim))["latency"]["count"] > served)
        assert failed >= 1
        check_fates(traffic.fates, expected)
        assert sum(fate.complete for fate in traffic.fates) >= 10


def open_stream(url: str, body: dict[str, object]) -> http.client.HTTPConnection:
    """A completion that was sent and not read yet."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def tokens_made(guide: Guide) -> float:
    """By all instances, of prompts and answers."""
    samples = [parse_samples(get(instance.url + "/metrics", timeout=30).text) for instance in guide.instances.values()]
    return sum(sample.get("vllm:generation_tokens_total", 0) + sample.get("vllm:prompt_tokens_total", 0) for sample in samples)


def running(guide: Guide) -> float:
    samples = [parse_samples(get(instance.url + "/metrics", timeout=30).text) for instance in guide.instances.values()]
    return sum(sample.get("vllm:num_requests_running", 0) + sample.get("vllm:num_requests_waiting", 0) for sample in samples)


def connections_to(ports: set[int]) -> int:
    """Established TCP connections of this machine whose far end is one of these local ports."""
    count = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            count += fields[3] == "01" and int(fields[2].rpartition(":")[2], 16) in ports
    return count


def seconds_until_left(guide: Guide, gateway: SecondGateway, stage: str, prompt: str) -> float:
    """From the moment at which a client leaves its stream in this stage until the gateway closes its connection to the instance at work."""
    ports = {guide.instances[name].port for name in INSTANCES}
    wait_until("nothing runs", 60, lambda: running(guide) == 0)
    idle = connections_to(ports)
    gone = gateway.counter("client_gone")
    # The answer would take a minute.
    connection = open_stream(gateway.url, {**completion_body(guide.model, prompt, 1500, stream=True), "ignore_eos": True})
    if stage == "decode":
        answer = connection.getresponse()
        for _ in range(6):
            answer.readline()
    else:
        wait_until("prefill has the request", 30, lambda: sum(gateway.in_flight(("prefill-1", "prefill-2")).values()) == 1)
    at_work = [name for name, count in gateway.in_flight().items() if count]
    assert at_work and at_work[0].startswith(stage), at_work
    before = connections_to({guide.instances[at_work[0]].port})
    connection.sock.shutdown(2)
    connection.close()
    closed_at = time.monotonic()
    wait_until("the gateway closes the connection to the instance", 5, lambda: connections_to({guide.instances[at_work[0]].port}) < before)
    took = time.monotonic() - closed_at
    # It counts once it has closed, which is a moment later where others have the processors.
    wait_until("it is counted", 5, lambda: sum(gateway.in_flight().values()) == 0 and gateway.counter("client_gone") > gone)
    assert gateway.counter("client_gone") == gone + 1
    # The engine ends the step that it is in; of the 1500 tokens it makes no more.
    made = tokens_made(guide)
    time.sleep(2)  # what would go on would make dozens of tokens in this time
    assert tokens_made(guide) - made <= 2
    assert connections_to(ports) <= idle + 1
    return took


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_client_that_goes_away_stops_the_work_within_100_ms(stage: str, both_of_each: Guide) -> None:
    guide = both_of_each
    fresh = itertools.count(700 + (stage == "decode"), 2)  # nobody has these prompts
    with second_gateway(guide) as gateway:

        def measure() -> float:
            return seconds_until_left(guide, gateway, stage, endless_prompt(next(fresh), told=34 if stage == "prefill" else 8))

        in_bounds(f"left in {stage}", measure, CANCELLED_SECONDS)


def test_a_drain_lets_a_running_stream_end_and_gives_the_instance_nothing_new(both_of_each: Guide, reference: Reference) -> None:
    guide, expected = both_of_each, reference.short_texts()
    with second_gateway(guide) as gateway:
        connection = open_stream(gateway.url, {**completion_body(guide.model, short_prompt(0), 200, stream=True), "ignore_eos": True})
        answer = connection.getresponse()
        first = answer.readline()
        (draining,) = [name for name, count in gateway.in_flight().items() if count]
        removal = ThreadPoolExecutor(1).submit(gateway.administer, "remove", instance=guide.local(draining), deadline_s=100)
        wait_until("it is draining", 10, lambda: gateway.status(guide.local(draining))["state"] == "draining")
        before = read_counters(guide.instances[draining].url).first_tokens
        assert completion_text(gateway.url, guide.model, short_prompt(1)) == expected[1]
        assert read_counters(guide.instances[draining].url).first_tokens == before
        rest = first + answer.read()
        assert rest.rstrip().endswith(b"data: [DONE]") and rest.count(b"data: {") >= 100, rest[-400:]
        assert removal.result(30)["drained"]
        assert gateway.status(guide.local(draining)) is None
        gateway.administer("add", type=draining.partition("-")[0], instance=guide.local(draining))
        assert gateway.status(guide.local(draining)) is not None


def test_two_gateways_side_by_side_and_one_of_them_killed(both_of_each: Guide, reference: Reference) -> None:
    guide, expected = both_of_each, reference.short_texts()
    with second_gateway(guide) as second, second_gateway(guide, name="gateway-3") as third:
        with Traffic(second.url, guide.model, len(expected), clients=2) as kept, Traffic(third.url, guide.model, len(expected), clients=2) as lost:
            lost.wait_for(2, 120)
            third.signal(signal.SIGKILL)
            kept.wait_for(6, 180)
        assert all(fate.complete for fate in kept.fates), kept.fates
        check_fates(kept.fates, expected)
        assert all(fate.text == expected[fate.prompt] for fate in lost.fates if fate.complete)


def test_the_default_policy_sends_a_prompt_where_its_prefix_is(both_of_each: Guide) -> None:
    guide = both_of_each
    with second_gateway(guide) as gateway:
        assert get(gateway.url + "/status").json["prefill_policy"] == "prefix_aware"
        prefills = ("prefill-1", "prefill-2")
        for index in (801, 802):
            before = {name: read_counters(guide.instances[name].url).first_tokens for name in prefills}
            for _ in range(2):
                completion_text(gateway.url, guide.model, endless_prompt(index, told=8), 2)
            served = sorted(read_counters(guide.instances[name].url).first_tokens - before[name] for name in prefills)
            assert served == [0, 2], f"prompt {index} went to both"
        # While one instance computes a long prompt, the other is the better one for a new prompt.
        with ThreadPoolExecutor(1) as other:
            long = other.submit(completion_text, gateway.url, guide.model, endless_prompt(810), 2)
            wait_until("a prefill instance is at work", 30, lambda: sum(gateway.in_flight(prefills).values()) == 1)
            (busy,) = [name for name, count in gateway.in_flight(prefills).items() if count]
            before = read_counters(guide.instances[busy].url).first_tokens
            completion_text(gateway.url, guide.model, endless_prompt(811, told=8), 2)
            assert read_counters(guide.instances[busy].url).first_tokens - before <= 1
            assert long.result(120)
        requests = [gateway.status(guide.local(name))["requests"] for name in prefills]
        assert min(requests) >= 1, f"one instance got everything: {requests}"


@pytest.fixture
def etcd(four: Guide) -> Iterator[str]:
    words = " ".join(four.component("etcd").argv[-1].split())
    yield words.partition("--advertise-client-urls ")[2].split()[0]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_instances_come_and_go_with_their_keys_in_etcd(four: Guide, etcd: str, reference: Reference) -> None:
    guide, expected = four, reference.short_texts()

    def put(key: str, value: str) -> None:
        assert post(etcd + "/v3/kv/put", {"key": encoded(key), "value": encoded(value)}).status == 200

    def source(role: str) -> dict[str, object]:
        return {"etcd": {"server": urlsplit(etcd).netloc, "prefix": f"/test8/{role}/", "interval_s": 0.2}}

    put("/test8/prefill/a", guide.local("prefill-1"))
    put("/test8/decode/a", guide.local("decode-1"))
    config = {"groups": {"prefill": source("prefill"), "decode": source("decode")}}
    with second_gateway(guide, config=config) as gateway:
        for name in ("prefill-1", "decode-1"):
            wait_until(f"{name} is found", 20, lambda name=name: gateway.status(guide.local(name)))
        assert completion_text(gateway.url, guide.model, short_prompt(2)) == expected[2]
        put("/test8/decode/b", guide.local("decode-2"))
        wait_until("decode-2 is found", 20, lambda: gateway.status(guide.local("decode-2")))
        assert post(etcd + "/v3/kv/deleterange", {"key": encoded("/test8/decode/a")}).status == 200
        wait_until("decode-1 is gone", 20, lambda: gateway.status(guide.local("decode-1")) is None)
        before = read_counters(guide.instances["decode-2"].url).first_tokens
        assert completion_text(gateway.url, guide.model, short_prompt(3)) == expected[3]
        assert read_counters(guide.instances["decode-2"].url).first_tokens == before + 1
