"""What the end-to-end tests run on: one cluster at a time, and the reference answers of a plain vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from moonpool.cluster import Cluster, PoolSettings
from moonpool.errors import UserError
from moonpool.http_client import post
from moonpool.ports import pick_free
from moonpool.processes import Supervisor
from moonpool.prompts import endless_prompt
from moonpool.provision import Vllm
from moonpool.vllm_instance import CONSUMER, PLAIN, PRODUCER

SEGMENT_BYTES = 768 << 20
SHORT_TOLD = 8
ANSWER_TOKENS = 24


class Supervised(Protocol):
    supervisor: Supervisor


Kind = TypeVar("Kind", bound=Supervised)


class ClusterKeeper:
    """Keeps the cluster of the running tests, and stops it when tests of another one come."""

    def __init__(self, vllm: Vllm, folders: pytest.TempPathFactory) -> None:
        self.vllm = vllm
        self._folders = folders
        self._name = ""
        self._current: Supervised | None = None

    def use(self, name: str, make: Callable[[Path], Kind]) -> Kind:
        """The cluster with this name: the running one, or a new one that `make` starts with its files in the given folder.

        `make` returns at once with its processes registered at its supervisor, so that a start that fails half-way is stopped too.
        """
        if self._name != name:
            self.stop()
            made = make(self._folders.mktemp(name))
            self._name, self._current = name, made
        return self._current  # type: ignore[return-value]

    def stop(self) -> None:
        if self._current is not None:
            self._current.supervisor.stop()
        self._current, self._name = None, ""

    def __enter__(self) -> ClusterKeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def started(supervisor: Supervisor, start: Callable[[], None]) -> None:
    """Run the start of a cluster; what it has started is stopped when it fails."""
    try:
        start()
    except BaseException as error:
        supervisor.stop()
        if isinstance(error, UserError):
            pytest.fail(error.render(), pytrace=False)
        raise


def acceptance_cluster(vllm: Vllm, model: Path, folder: Path) -> Cluster:
    """One prefill, one decode and one plain instance, the pool and its gateway, as `up --smoke` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(vllm, model, folder, PoolSettings(segment_bytes=SEGMENT_BYTES))

    def start() -> None:
        cluster.start_pool()
        cluster.add_instance("prefill-1", PRODUCER)
        cluster.add_instance("decode-1", CONSUMER)
        cluster.add_instance("plain", PLAIN)
        cluster.start_gateway(["prefill-1"], ["decode-1"], pick_free(1)[0])
        cluster.wait_for_instances()

    started(cluster.supervisor, start)
    return cluster


def short_prompt(index: int) -> str:
    """A prompt of some 700 tokens: long enough for five blocks in the pool, short enough for a stream of requests."""
    return endless_prompt(index, told=SHORT_TOLD)


def completion_body(model: str, prompt: str, tokens: int = ANSWER_TOKENS, stream: bool = False) -> dict[str, object]:
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}


def completion_text(url: str, model: str, prompt: str, tokens: int = ANSWER_TOKENS) -> str:
    """The text of a completion that has to succeed."""
    answer = post(url + "/v1/completions", completion_body(model, prompt, tokens), timeout=300)
    assert answer.status == 200, answer.text
    return answer.json["choices"][0]["text"]


class Reference:
    """Texts of a plain vLLM, asked for once each. The acceptance cluster's plain instance answers; later clusters use what was asked."""

    SHORT_PROMPTS = 6

    def __init__(self, keeper: ClusterKeeper, model: Path) -> None:
        self._keeper = keeper
        self._model = model
        self._short: list[str] = []

    def cluster(self) -> Cluster:
        """The acceptance cluster, with the short prompts' texts asked for while its plain instance is there."""
        cluster = self._keeper.use("acceptance", lambda folder: acceptance_cluster(self._keeper.vllm, self._model, folder))
        if not self._short:
            plain = cluster.instances["plain"].url
            self._short = [completion_text(plain, cluster.served_name, short_prompt(index)) for index in range(self.SHORT_PROMPTS)]
        return cluster

    def short_texts(self) -> list[str]:
        """The plain texts of short_prompt(0) and on. Call it before using another cluster."""
        if not self._short:
            self.cluster()
        return self._short
