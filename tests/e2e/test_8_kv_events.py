"""The gateway follows KV events as vLLM publishes them: its own publisher, before a stub that has no engine (kv_instance.py)."""

from __future__ import annotations

import json
import random
import string
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moonpool.http_client import get, is_healthy, post
from moonpool.ports import pick_free
from moonpool.processes import Component, Supervisor
from moonpool.provision import Vllm

pytestmark = pytest.mark.timeout(300)  # the stubs import vLLM
PROGRAMS = Path(sys.executable).parent
STUB = Path(__file__).parent / "kv_instance.py"
HOSTS = ("127.0.0.1", "127.0.0.2")  # prefill; the events' port is one for all of a group
DECODE = "127.0.0.3"
SECONDS = 60.0


def eventually(what: str, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def text(length: int = 8000) -> str:
    return "".join(random.choices(string.ascii_lowercase, k=length))


class Followed:
    """Two prefill stubs with events, a decode stub whose events are not followed, and a gateway."""

    def __init__(self, supervisor: Supervisor, vllm: Vllm, folder: Path) -> None:
        self.supervisor, self.vllm, self.folder = supervisor, vllm, folder
        self.port, self.http, self.events, self.replay = pick_free(4)
        self.stubs = {host: self.start_stub(host) for host in (*HOSTS, DECODE)}
        for host in self.stubs:
            eventually(f"the stub at {host} does not answer", lambda host=host: is_healthy(self.url(host)), 120)
        config = folder / "gateway.json"
        followed = {"port": self.events, "replay_port": self.replay, "topic": "kv-events"}
        prefill = {"instances": [f"{host}:{self.http}" for host in HOSTS], "policy": "prefix_aware", "kv_events": followed}
        groups = {"prefill": prefill, "decode": {"instances": [f"{DECODE}:{self.http}"]}}
        config.write_text(json.dumps({"model": "m", "groups": groups}))
        argv = [PROGRAMS / "moonpool", "gateway", "--config", config, "--port", str(self.port)]
        supervisor.start(Component("gateway", argv, folder / "gateway.log"))
        eventually("the gateway follows both", lambda: self.is_up() and all(self.seen(host)["whole"] for host in HOSTS))

    def start_stub(self, host: str) -> Component:
        argv = [self.vllm.python, STUB, host, *map(str, (self.http, self.events, self.replay))]
        return self.supervisor.start(Component(f"stub-{host}", argv, self.folder / f"{host}.log", dict(self.vllm.environment)))

    def is_up(self) -> bool:
        return is_healthy(f"http://127.0.0.1:{self.port}/health")

    def url(self, host: str, path: str = "/health") -> str:
        return f"http://{host}:{self.http}{path}"

    def tell(self, host: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return post(self.url(host, path), body or {}).json

    def seen(self, host: str) -> dict[str, Any]:
        """What the gateway knows of an instance's events."""
        instances = get(f"http://127.0.0.1:{self.port}/status").json["instances"]
        return next(one["kv_events"] for one in instances if one["instance"] == f"{host}:{self.http}" and one["type"] == "prefill")

    def agrees(self, host: str) -> bool:
        return self.seen(host)["connected"] and self.seen(host)["blocks"] == get(self.url(host)).json["blocks"]

    def complete(self, prompt: Any, model: str = "m") -> str:
        """Through the gateway; the host whose prefill got it, once the gateway knows all that its events said."""
        before = {host: get(self.url(host)).json["requests"] for host in HOSTS}
        answer = post(f"http://127.0.0.1:{self.port}/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 1})
        assert answer.status == 200, answer.text
        assert "prompt_token_ids" not in answer.text, "what the gateway asks prefill is not the client's"
        (host,) = [host for host in HOSTS if get(self.url(host)).json["requests"] != before[host]]
        eventually("the gateway knows the instance's blocks", lambda: self.agrees(host))
        return host


@pytest.fixture(scope="module")
def followed(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    with Supervisor() as supervisor:
        made = Followed(supervisor, vllm, tmp_path_factory.mktemp("kv-events"))
        made.complete(text())  # from the first events on the size of a block is known
        yield made


def other_than(host: str) -> str:
    return HOSTS[1 - HOSTS.index(host)]


def test_an_instance_is_asked_for_what_it_has_and_not_for_what_it_was_sent(followed: Followed) -> None:
    prompt = text()
    home = followed.complete(prompt)
    assert {followed.complete(prompt) for _ in range(5)} == {home}
    # It evicts the prompt; the other one gets it from elsewhere.
    followed.tell(home, "/evict")
    followed.tell(other_than(home), "/v1/completions", {"model": "m", "prompt": prompt})
    eventually("the gateway heard of it", lambda: followed.agrees(home) and followed.agrees(other_than(home)))
    assert {followed.complete(prompt + text(100)) for _ in range(5)} == {other_than(home)}


def test_a_prompt_of_token_ids_is_found_wherever_it_was_computed(followed: Followed) -> None:
    tokens = [random.randrange(50_000) for _ in range(2000)]
    for host in HOSTS:
        followed.tell(host, "/clear")
        followed.tell(other_than(host), "/clear")
        followed.tell(host, "/v1/completions", {"model": "m", "prompt": tokens})
        eventually("the gateway heard of it", lambda: followed.agrees(HOSTS[0]) and followed.agrees(HOSTS[1]))
        assert {followed.complete(tokens) for _ in range(5)} == {host}
        tokens = tokens[::-1]


def test_an_adapters_blocks_are_its_own(followed: Followed) -> None:
    prompt = text()
    for host in HOSTS:
        followed.tell(host, "/v1/completions", {"model": "tuned", "prompt": text()})  # its name is known from now on
        eventually("the gateway heard of it", lambda host=host: followed.agrees(host))
    base = followed.complete(prompt)
    adapted = followed.complete(prompt, "tuned")
    followed.tell(base, "/evict")
    eventually("the gateway heard of it", lambda: followed.agrees(base))
    followed.tell(other_than(base), "/v1/completions", {"model": "m", "prompt": prompt})
    eventually("the gateway heard of it", lambda: followed.agrees(other_than(base)))
    assert {followed.complete(prompt) for _ in range(3)} == {other_than(base)}
    if adapted == base:  # evicted there: it is nowhere
        adapted = followed.complete(prompt, "tuned")
    assert {followed.complete(prompt, "tuned") for _ in range(3)} == {adapted}


def test_what_was_missed_is_had_from_the_replay(followed: Followed) -> None:
    host = HOSTS[0]
    followed.tell(host, "/v1/completions", {"model": "m", "prompt": text()})
    eventually("the gateway heard of it", lambda: followed.agrees(host))
    gaps = followed.seen(host)["gaps"]
    followed.tell(host, "/publish-unheard")
    followed.tell(host, "/v1/completions", {"model": "m", "prompt": text(1000)})
    eventually("the gap was seen and closed", lambda: followed.seen(host)["gaps"] == gaps + 1 and followed.agrees(host))
    assert followed.seen(host)["whole"]


def test_what_is_lost_makes_the_gateway_forget_until_the_cache_is_known_empty(followed: Followed) -> None:
    host = HOSTS[1]
    followed.tell(host, "/v1/completions", {"model": "m", "prompt": text()})
    eventually("the gateway heard of it", lambda: followed.agrees(host))
    followed.tell(host, "/lose")
    followed.tell(host, "/v1/completions", {"model": "m", "prompt": text(640)})
    eventually("it forgot", lambda: not followed.seen(host)["whole"] and followed.seen(host)["blocks"] == 10)
    followed.tell(host, "/clear")
    eventually("it knows again", lambda: followed.seen(host)["whole"] and followed.agrees(host))


def test_an_instance_that_is_killed_and_comes_back_is_followed_again(followed: Followed) -> None:
    host = HOSTS[1]
    followed.tell(host, "/v1/completions", {"model": "m", "prompt": text()})
    eventually("the gateway heard of it", lambda: followed.agrees(host))
    followed.stubs[host].kill()
    eventually("the loss is seen", lambda: not followed.seen(host)["connected"])
    assert followed.seen(host)["blocks"] == 0
    followed.supervisor.start(followed.stubs[host])
    eventually("it is followed again", lambda: followed.seen(host)["connected"] and followed.seen(host)["whole"], 120)
    followed.tell(host, "/v1/completions", {"model": "m", "prompt": text()})
    eventually("the gateway heard of it", lambda: followed.agrees(host) and followed.seen(host)["blocks"] > 0)


def test_the_metrics_tell(followed: Followed) -> None:
    metrics = get(f"http://127.0.0.1:{followed.port}/metrics").text
    labels = f'{{instance="{HOSTS[0]}:{followed.http}",role="prefill"}}'
    assert f"moonpool_gateway_instance_kv_events_connected{labels} 1" in metrics
    assert f"moonpool_gateway_instance_kv_blocks{labels}" in metrics
    assert f"moonpool_gateway_instance_kv_event_gaps_total{labels} 1" in metrics
    assert f'role="decode"}}' not in "".join(line for line in metrics.splitlines() if "_kv_" in line)
