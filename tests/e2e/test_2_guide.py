"""Point 2: the guide line by line, with etcd (two of each, the second of each added at run time), with redis, and with http metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clusters import ClusterKeeper, Reference, completion_text, short_prompt, started
from guide import ADD, FOUR, Guide, shell
from moonpool.vllm_instance import CONSUMER, PRODUCER
from moonpool.vllm_metrics import read_counters

COMPLETION = """curl -s {url}/v1/completions -H "Content-Type: application/json" -d '{body}'"""


def small_stack(guide: Guide, metadata: str) -> Guide:
    roles = {"prefill-1": PRODUCER, "decode-1": CONSUMER}
    started(guide.supervisor, lambda: guide.start(metadata, roles, (["prefill-1"], ["decode-1"])))
    return guide


def assert_served_from_the_pool(guide: Guide, decode: str, prompt: int, expected: str) -> None:
    """A request with the guide's curl has the plain text, and its prompt came to the decode instance through the pool."""
    before = read_counters(guide.instances[decode].url)
    body = {"model": guide.model, "prompt": short_prompt(prompt), "max_tokens": 24, "temperature": 0}
    answer = json.loads(shell(COMPLETION.format(url=guide.gateway_url, body=json.dumps(body).replace("'", "'\\''"))))
    assert answer["choices"][0]["text"] == expected
    change = read_counters(guide.instances[decode].url) - before
    # vLLM computes at least the last token itself, so a prompt of whole blocks has one block less from the pool.
    assert change.external_hits >= answer["usage"]["prompt_tokens"] // 128 * 128 - 128, change


@pytest.mark.cluster("guide-etcd")
def test_the_guides_first_request_is_answered_through_the_pool_with_etcd(four: Guide, reference: Reference) -> None:
    assert_served_from_the_pool(four, "decode-1", 0, reference.short_texts()[0])


@pytest.mark.cluster("guide-etcd")
def test_a_wrong_or_missing_admin_key_adds_nothing(four: Guide) -> None:
    line = ADD.format(url=four.gateway_url, kind="prefill", instance=four.local("prefill-2"))
    assert shell("ADMIN_API_KEY=wrong; " + line).splitlines()[-1] == "403"
    assert shell(line.replace('-H "X-API-Key: $ADMIN_API_KEY" ', "")).splitlines()[-1] == "401"


@pytest.mark.cluster("guide-etcd")
def test_the_second_of_each_is_added_at_run_time_and_serves(four: Guide, reference: Reference) -> None:
    for kind in ("prefill", "decode"):
        answer = shell(ADD.format(url=four.gateway_url, kind=kind, instance=four.local(f"{kind}-2")))
        assert answer.splitlines()[-1] == "200", answer
    status = shell(f"curl -s {four.gateway_url}/status")
    for name in FOUR:
        assert four.local(name) in status, status
    before = {name: read_counters(instance.url).first_tokens for name, instance in four.instances.items()}
    for prompt, expected in enumerate(reference.short_texts()[1:5], start=1):
        assert completion_text(four.gateway_url, four.model, short_prompt(prompt)) == expected
    served = {name: read_counters(instance.url).first_tokens - before[name] for name, instance in four.instances.items()}
    assert served == {name: 2 for name in FOUR}


@pytest.mark.cluster("guide-etcd")
def test_a_request_straight_to_an_instance_is_answered_as_by_vanilla_vllm(four: Guide, reference: Reference) -> None:
    expected = reference.short_texts()[5]
    for name in ("prefill-1", "decode-2"):
        assert completion_text(four.instances[name].url, four.model, short_prompt(5)) == expected


@pytest.mark.parametrize("metadata", [pytest.param(kind, marks=pytest.mark.cluster(f"guide-{kind}")) for kind in ("redis", "http")])
def test_the_guide_holds_with_the_other_metadata_servers(metadata: str, reference: Reference, keeper: ClusterKeeper, smollm2: Path) -> None:
    expected = reference.short_texts()
    guide = keeper.use(f"guide-{metadata}", lambda folder: small_stack(Guide(keeper.vllm, smollm2, folder), metadata))
    assert_served_from_the_pool(guide, "decode-1", 0, expected[0])
    assert_served_from_the_pool(guide, "decode-1", 1, expected[1])
