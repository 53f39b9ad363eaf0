"""Point 3: kv_both on two instances, each served by what the other computed; and -tp 2, with the text that there is without the pool."""

from __future__ import annotations

from pathlib import Path

import pytest
from clusters import SEGMENT_BYTES, ClusterKeeper, Reference, completion_text, short_prompt, started
from moonpool.cluster import Cluster, PoolSettings
from moonpool.ports import pick_free
from moonpool.vllm_instance import BOTH, CONSUMER, PLAIN, PRODUCER
from moonpool.vllm_metrics import read_counters

# Whole blocks of 128 tokens in a short prompt, the last of which may be left to compute.
LEAST_HIT_TOKENS = 256


@pytest.mark.cluster("both")
def test_each_of_two_kv_both_instances_is_served_by_what_the_other_computed(reference: Reference, keeper: ClusterKeeper, smollm2: Path) -> None:
    expected = reference.short_texts()

    def make(folder: Path) -> Cluster:
        cluster = Cluster(keeper.vllm, smollm2, folder, PoolSettings(segment_bytes=SEGMENT_BYTES))

        def start() -> None:
            cluster.start_pool()
            for name in ("both-1", "both-2"):
                cluster.add_instance(name, BOTH)
            cluster.wait_for_instances()

        started(cluster.supervisor, start)
        return cluster

    cluster = keeper.use("both", make)
    for prompt, (first, second) in enumerate([("both-1", "both-2"), ("both-2", "both-1")]):
        assert completion_text(cluster.instances[first].url, cluster.served_name, short_prompt(prompt)) == expected[prompt]
        before = read_counters(cluster.instances[second].url)
        assert completion_text(cluster.instances[second].url, cluster.served_name, short_prompt(prompt)) == expected[prompt]
        change = read_counters(cluster.instances[second].url) - before
        assert change.external_hits >= LEAST_HIT_TOKENS and change.local_hits == 0, change


PROMPTS = 3


def texts_without_the_pool(keeper: ClusterKeeper, model: Path, folder: Path) -> list[str]:
    """What two ranks answer without a connector. They are stopped before the others start: six spinning workers starve two cores."""
    cluster = Cluster(keeper.vllm, model, folder, tensor_parallel=2)

    def start() -> None:
        cluster.add_instance("plain", PLAIN)
        cluster.wait_for_instances()

    folder.mkdir(parents=True, exist_ok=True)
    started(cluster.supervisor, start)
    try:
        return [completion_text(cluster.instances["plain"].url, cluster.served_name, short_prompt(prompt)) for prompt in range(PROMPTS)]
    finally:
        cluster.supervisor.stop()


@pytest.mark.cluster("tensor-parallel")
def test_two_tensor_parallel_ranks_give_the_text_that_there_is_without_the_pool(keeper: ClusterKeeper, tiny4: Path) -> None:
    expected: list[str] = []

    def make(folder: Path) -> Cluster:
        expected.extend(texts_without_the_pool(keeper, tiny4, folder / "plain"))
        cluster = Cluster(keeper.vllm, tiny4, folder, PoolSettings(segment_bytes=256 << 20, buffer_bytes=64 << 20), tensor_parallel=2)

        def start() -> None:
            cluster.start_pool()
            cluster.add_instance("prefill-1", PRODUCER)
            cluster.add_instance("decode-1", CONSUMER)
            cluster.start_gateway(["prefill-1"], ["decode-1"], pick_free(1)[0])
            cluster.wait_for_instances()

        started(cluster.supervisor, start)
        return cluster

    cluster = keeper.use("tensor-parallel", make)
    before = read_counters(cluster.instances["decode-1"].url)
    texts = [completion_text(cluster.gateway_url, cluster.served_name, short_prompt(prompt)) for prompt in range(PROMPTS)]
    assert texts == expected
    # Four ranks that spin while they wait leave two cores little for anybody else: a save that is later than the hand-over waits is a miss.
    change = read_counters(cluster.instances["decode-1"].url) - before
    assert change.external_hits >= LEAST_HIT_TOKENS, change
