"""Point 4: kill -9 of a vLLM instance under a stream of requests, prefill once, decode once; it rejoins by itself when started again."""

from __future__ import annotations

import time

import pytest
from clusters import Reference
from guide import Guide
from moonpool.http_client import get
from moonpool.vllm_metrics import read_counters
from traffic import Traffic, check_fates

pytestmark = pytest.mark.cluster("guide-etcd")
REJOIN_SECONDS = 60.0


@pytest.mark.parametrize("victim", ["prefill-2", "decode-2"])
def test_a_killed_instance_costs_no_unstarted_request_and_rejoins_by_itself(victim: str, both_of_each: Guide, reference: Reference) -> None:
    guide = both_of_each
    expected = reference.short_texts()
    master = guide.component("master")
    master_pid = master.pid
    killed = guide.component(victim)
    with Traffic(guide.gateway_url, guide.model, len(expected)) as traffic:
        traffic.wait_for(6, 120)
        killed.kill()
        traffic.wait_for(12, 180)
    check_fates(traffic.fates, expected)
    assert sum(fate.complete for fate in traffic.fates) >= 12
    # It loads its model without the stream, which would only make that slow.
    guide.supervisor.start(killed)
    guide.cluster.wait_for_instances([victim])
    with Traffic(guide.gateway_url, guide.model, len(expected)) as traffic:
        wait_until_it_serves(guide, victim)
    check_fates(traffic.fates, expected)
    assert master.running and master.pid == master_pid


def wait_until_it_serves(guide: Guide, name: str) -> None:
    """Wait until the gateway sends the restarted instance requests again."""
    deadline = time.monotonic() + REJOIN_SECONDS
    while read_counters(guide.instances[name].url).first_tokens == 0:
        assert time.monotonic() < deadline, f"{name} got no request within {REJOIN_SECONDS:.0f} s of being healthy: {get(guide.gateway_url + '/status').text}"
        time.sleep(0.2)
