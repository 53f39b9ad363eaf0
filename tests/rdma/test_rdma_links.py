"""Cables that go down in mid-transfer: the other one carries on, then TCP where it may, then an error that says so; and they come back."""

from __future__ import annotations

import os
import time

import pytest
from compat_programs import MIB, wait_until
from rdma_programs import GENEROUS_SECONDS, USER_NICS, Errors, Traffic, cable_down, names, open_store, received, seconds_of, sent, told_paths

pytestmark = pytest.mark.cuts
SIZE = 4 * MIB


def flows(nic: str, packets: int = 500):
    """A condition: so many more packets have left this NIC and come to it."""
    start_sent, start_received = sent(nic), received(nic)
    return lambda: sent(nic) - start_sent > packets and received(nic) - start_received > packets


def test_one_link_goes_down_in_mid_transfer_and_comes_back(store) -> None:
    first, second = names(USER_NICS)[:2]
    with Traffic(store, SIZE) as traffic:
        traffic.until(flows(first), "the first NIC works")
        traffic.until(flows(second), "the second NIC works")
        with cable_down(first):
            stays = sent(first)
            traffic.goes_on()
            traffic.until(flows(second), "the second NIC carries on")
            assert sent(first) - stays < 500, "the first NIC has no cable"
        traffic.until(flows(first), "the first NIC is used again")
        with cable_down(second):
            traffic.goes_on()
        traffic.until(flows(second), "the second NIC is used again")
    assert not traffic.wrong, traffic.wrong


def test_with_all_links_down_tcp_takes_over_and_rdma_comes_back(owner, master, monkeypatch) -> None:
    monkeypatch.setenv("MOONPOOL_PATHS", "rdma,tcp")
    nics = names(USER_NICS)
    store = open_store(master)
    try:
        with Traffic(store, SIZE) as traffic:
            traffic.until(flows(nics[0]), "RDMA works")
            with cable_down(*nics):
                traffic.goes_on()
                wait_until(lambda: "tcp" in told_paths(master, store), "status shows tcp", GENEROUS_SECONDS)
                assert told_paths(master, store)["tcp"]["reason"] != "", "and why"
            for nic in nics:
                traffic.until(flows(nic), f"{nic} is used again")
        assert not traffic.wrong, traffic.wrong
    finally:
        store.remove_all(force=True)
        store.close()


def test_with_all_links_down_and_nothing_else_allowed_a_put_fails_in_time_and_says_why(store, capfd) -> None:
    nics = names(USER_NICS)
    errors = Errors(capfd)
    value = os.urandom(SIZE)
    assert store.put("before", value) == 0
    errors.lines()
    with cable_down(*nics):
        code, took = seconds_of(lambda: store.put("during", value))
        assert isinstance(code, int) and code < 0
        assert took < GENEROUS_SECONDS
        assert store.get("before") == b""
        assert errors.lines("rdma"), "the error says which path failed"
    deadline = time.monotonic() + GENEROUS_SECONDS
    while store.put("after", value) != 0:
        assert time.monotonic() < deadline, "puts work again"
    assert store.get("after") == value
    assert store.get("before") == value
