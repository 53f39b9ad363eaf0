"""Processes that are killed, stopped, or strangers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from compat_programs import MIB, Master, stopped, wait_until
from mooncake.store import ReplicateConfig
from rdma_programs import (
    GENEROUS_SECONDS,
    PATIENT,
    SEGMENT,
    USER_NICS,
    Owner,
    Traffic,
    User,
    names,
    open_store,
    received,
    seconds_of,
    sent,
)

SIZE = 4 * MIB


def test_an_owner_killed_in_mid_transfer_is_a_miss_soon_and_others_serve_on(own_master, tmp_path) -> None:
    doomed, other = Owner(tmp_path, own_master), Owner(tmp_path, own_master)
    store = open_store(own_master)
    try:
        value = os.urandom(SIZE)
        keys = {}
        for program in (doomed, other):
            config = ReplicateConfig()
            config.preferred_segment = program.hostname
            keys[program] = f"at {program.hostname}"
            assert store.put(keys[program], value, config) == 0
        with Traffic(store, SIZE) as traffic:
            nic = names(USER_NICS)[0]
            start = sent(nic)
            traffic.until(lambda: sent(nic) - start > 500, "data flows")
            doomed.process.send_signal(signal.SIGKILL)
            doomed.process.wait(GENEROUS_SECONDS)
            # What was on its way to the dead owner may fail; nothing may hang or come back wrong.
            found, took = seconds_of(lambda: store.get(keys[doomed]))
            assert found == b"" and took < GENEROUS_SECONDS
            assert store.get(keys[other]) == value
        assert not any("other ones" in text for text in traffic.wrong), traffic.wrong
        wait_until(lambda: store.put("later", value) == 0, "the pool takes objects again", GENEROUS_SECONDS)
        assert store.get("later") == value
    finally:
        store.close()
        for program in (doomed, other):
            program.kill()


def test_a_writer_killed_in_mid_transfer_leaves_no_object_and_no_hole(own_master, tmp_path) -> None:
    owner = Owner(tmp_path, own_master, 32 * MIB)
    user = User(tmp_path, own_master, 12 * MIB)
    try:
        nic = names(USER_NICS)[0]
        for _ in range(2):
            before = received(nic) + sent(nic)
            wait_until(lambda before=before: received(nic) + sent(nic) - before > 1000, "the writer is at work", GENEROUS_SECONDS)
        user.send(signal.SIGKILL)
        user.process.wait(GENEROUS_SECONDS)
        store = open_store(own_master)
        try:
            assert store.remove_all(force=True) >= 0
            # All of the owner's memory can be had again: what the dead writer had begun is fenced, then free.
            value = os.urandom(12 * MIB)
            wait_until(lambda: store.put("one", value) == 0, "there is room for one", GENEROUS_SECONDS)
            wait_until(lambda: store.put("two", value) == 0, "and for another, so nothing is lost", GENEROUS_SECONDS)
            assert store.get("one") == value and store.get("two") == value
        finally:
            store.close()
    finally:
        for program in (user, owner):
            program.kill()


def test_a_stopped_owner_costs_no_more_than_the_deadline_and_all_is_well_when_it_goes_on(own_master, tmp_path, monkeypatch) -> None:
    owner = Owner(tmp_path, own_master)
    monkeypatch.setenv("MOONPOOL_OPERATION_TIMEOUT_MS", "4000")
    monkeypatch.setenv("MOONPOOL_TRANSFER_TIMEOUT_MS", "4000")
    store = open_store(own_master)
    try:
        value = os.urandom(SIZE)
        wait_until(lambda: store.put("before", value) == 0, "the pool takes objects", GENEROUS_SECONDS)
        with stopped(owner):
            code, took = seconds_of(lambda: store.put("during", value))
            assert isinstance(code, int) and code < 0
            assert took < 4 + 6, "the deadline, and what a busy machine adds"
            found, took = seconds_of(lambda: store.get("before"))
            assert found in (b"", value), "memory is read without its process's help, or not at all"
            assert took < 4 + 6
        wait_until(lambda: store.put("after", value) == 0, "puts work again", GENEROUS_SECONDS)
        wait_until(lambda: store.get("after") == value, "gets work again", GENEROUS_SECONDS)
    finally:
        store.close()
        owner.kill()


STRANGER = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
print("code", store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 << 20, "rdma", sys.argv[2], sys.argv[1]), flush=True)
print("got", len(store.get("secret")), flush=True)
"""


def test_a_wrong_cluster_token_gets_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MOONPOOL_CLUSTER_TOKEN", "the right one")
    master = Master(tmp_path)
    owner = Owner(tmp_path, master, SEGMENT)
    store = open_store(master)
    try:
        value = os.urandom(MIB)
        assert store.put("secret", value) == 0
        before = [sent(nic) + received(nic) for nic in names(USER_NICS)]
        env = {**os.environ, **PATIENT, "MOONPOOL_CLUSTER_TOKEN": "a wrong one", "MOONPOOL_SETUP_TIMEOUT_MS": "5000"}
        argv = [sys.executable, "-c", STRANGER, master.address, USER_NICS]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=GENEROUS_SECONDS, check=False)
        assert "code -" in done.stdout and "got 0" in done.stdout, done.stdout + done.stderr
        assert "token" in done.stderr
        assert [sent(nic) + received(nic) for nic in names(USER_NICS)] == before
        assert store.get("secret") == value
    finally:
        store.close()
        for program in (owner, master):
            program.kill()
