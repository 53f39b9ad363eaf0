"""Real vLLM on the CPU, real etcd and redis. Starting vLLM is what takes the time, and memory is for five instances at most, so:

- tests say which cluster they want with `@pytest.mark.cluster("name")`, and are run in the order of CLUSTERS, one cluster after the other;
- the texts that a plain vLLM gives are asked for once and remembered, while that instance is up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from clusters import ClusterKeeper, Reference, started  # noqa: E402
from guide import ADD, FOUR, Guide, shell  # noqa: E402
from moonpool.http_client import get  # noqa: E402
from moonpool.models import SMOLLM2, TINY_FOUR_HEADS, ensure_model  # noqa: E402
from moonpool.provision import Vllm, ensure_vllm  # noqa: E402

# "" is for tests that need no vLLM at all. The acceptance comes first: it has the plain instance that answers for the reference.
CLUSTERS = ("", "acceptance", "guide-etcd", "guide-redis", "guide-http", "nixl", "both", "two-hosts", "tensor-parallel")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster(name): the cluster that the test runs on; tests of one cluster run together")


def _cluster_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("cluster")
    return marker.args[0] if marker else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: CLUSTERS.index(_cluster_of(item)))


@pytest.fixture(scope="session")
def vllm() -> Vllm:
    return ensure_vllm(None, "cpu")


@pytest.fixture(scope="session")
def smollm2(vllm: Vllm) -> Path:
    return ensure_model(SMOLLM2, vllm)


@pytest.fixture(scope="session")
def tiny4(vllm: Vllm) -> Path:
    return ensure_model(TINY_FOUR_HEADS, vllm)


@pytest.fixture(scope="session")
def keeper(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterKeeper]:
    with ClusterKeeper(vllm, tmp_path_factory) as keeper:
        yield keeper


@pytest.fixture(scope="session")
def reference(vllm: Vllm, smollm2: Path, keeper: ClusterKeeper) -> Reference:
    """What a vLLM without any connector answers."""
    return Reference(keeper, smollm2)


@pytest.fixture
def four(reference: Reference, keeper: ClusterKeeper, smollm2: Path) -> Iterator[Guide]:
    """Two prefill and two decode instances with etcd; the proxy knows the first of each."""
    reference.short_texts()

    def make(folder: Path) -> Guide:
        guide = Guide(keeper.vllm, smollm2, folder)
        started(guide.supervisor, lambda: guide.start("etcd", FOUR, (["prefill-1"], ["decode-1"])))
        return guide

    yield keeper.use("guide-etcd", make)


@pytest.fixture
def both_of_each(four: Guide) -> Iterator[Guide]:
    """The proxy knows all four instances, whether or not the tests of point 2 have added the second ones."""
    status = get(four.gateway_url + "/status").text
    for kind in ("prefill", "decode"):
        if four.local(f"{kind}-2") not in status:
            shell(ADD.format(url=four.gateway_url, kind=kind, instance=four.local(f"{kind}-2")))
    yield four
