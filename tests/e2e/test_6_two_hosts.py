"""Point 6: prefill and pool on one host, decode on another, over a veth pair; addresses instead of localhost, nothing on 0.0.0.0 unasked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clusters import SEGMENT_BYTES, ClusterKeeper, Reference, completion_text, short_prompt, started
from moonpool.cluster import Cluster, PoolSettings
from moonpool.ports import pick_free
from moonpool.processes import Supervisor
from moonpool.vllm_instance import CONSUMER, PRODUCER
from moonpool.vllm_metrics import read_counters
from namespaces import Host, inside, listeners, two_hosts

pytestmark = [
    pytest.mark.cluster("two-hosts"),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"),
]


@dataclass
class TwoHosts:
    cluster: Cluster
    first: Host
    second: Host

    @property
    def supervisor(self) -> Supervisor:
        return self.cluster.supervisor


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


@pytest.fixture(scope="module")
def two(hosts: tuple[Host, Host], reference: Reference, keeper: ClusterKeeper, smollm2: Path) -> Iterator[TwoHosts]:
    reference.short_texts()
    first, second = hosts

    def make(folder: Path) -> TwoHosts:
        cluster = Cluster(keeper.vllm, smollm2, folder, PoolSettings(host=first.address, segment_bytes=SEGMENT_BYTES))

        def start() -> None:
            with inside(first):
                cluster.start_pool()
                cluster.add_instance("prefill-1", PRODUCER)
            with inside(second):
                cluster.add_instance("decode-1", CONSUMER, host=second.address)
            with inside(first):
                cluster.start_gateway(["prefill-1"], ["decode-1"], pick_free(1)[0])
                cluster.wait_for_instances()

        started(cluster.supervisor, start)
        return TwoHosts(cluster, first, second)

    yield keeper.use("two-hosts", make)
    keeper.stop()


def test_a_prompt_computed_on_one_host_is_decoded_from_the_pool_on_the_other(two: TwoHosts, reference: Reference) -> None:
    expected = reference.short_texts()
    with inside(two.second):
        before = read_counters(two.cluster.instances["decode-1"].url)
        for prompt in range(3):
            assert completion_text(two.cluster.gateway_url, two.cluster.served_name, short_prompt(prompt)) == expected[prompt]
        change = read_counters(two.cluster.instances["decode-1"].url) - before
    assert change.external_hits >= 3 * 256, change


def test_nothing_of_moonpool_listens_on_all_addresses(two: TwoHosts) -> None:
    ours = {two.cluster.component(name).pid for name in ("master", "gateway")}
    found = [(host, *listener) for host in (two.first, two.second) for listener in listeners(host)]
    assert {pid for _, _, _, pid in found} >= ours
    wild = [entry for entry in found if entry[1] in ("0.0.0.0", "*", "[::]") and (entry[3] in ours or 12300 <= entry[2] <= 14300)]
    assert wild == []
    # Each vLLM worker lends memory through a port of its own, bound to its own host's address.
    for host in (two.first, two.second):
        assert any(address == host.address and 12300 <= port <= 14300 for where, address, port, _ in found if where == host), found
