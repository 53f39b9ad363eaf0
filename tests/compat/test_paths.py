"""MOONPOOL_PATHS: which paths data takes between real processes, what the master's /status says of it, and what a mistake says."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from compat_programs import MIB, Master, Node, set_up, wait_until
from mooncake.store import MooncakeDistributedStore, ReplicateConfig

INVALID = -600
SEGMENT = 64 * MIB
REPORTED_SECONDS = 20  # nodes tell of their paths every five


def reported_paths(master: Master, store: MooncakeDistributedStore) -> dict[tuple[str, str], dict[str, object]]:
    """What /status says of the data that this store has moved: by peer and path."""
    with urllib.request.urlopen(f"http://127.0.0.1:{master.admin_port}/status", timeout=5) as answer:
        status = json.load(answer)
    (node,) = [node for node in status["nodes"] if node["name"] == store.get_hostname()]
    return {(path["peer"], path["path"]): path for path in node["paths"]}


def move(store: MooncakeDistributedStore, owner: str, key: str, size: int = 3 * MIB + 5) -> bytes:
    """Puts an object at this owner, and reads it in all ways. Returns it."""
    value = os.urandom(size)
    config = ReplicateConfig()
    config.preferred_segment = owner
    assert store.put(key, value, config) == 0
    (where,) = store.get_replica_desc(key)
    assert where.get_memory_descriptor().buffer_descriptor.transport_endpoint == owner
    assert store.get(key) == value
    assert bytes(store.get_buffer(key)) == value
    return value


class Pool:
    """A master, a node that shares its memory, and one that does not."""

    def __init__(self, folder: Path) -> None:
        self.master = Master(folder)
        self.sharing = Node(folder, self.master.address, SEGMENT)
        self.tcp_only = Node(folder, self.master.address, SEGMENT, env={"MOONPOOL_PATHS": "tcp"})

    def stop(self) -> None:
        for program in (self.sharing, self.tcp_only, self.master):
            program.kill()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("paths"))
    yield pool
    pool.stop()


# The variable; the path that is taken to the node that shares memory, and why none better; the same for the one that does not.
CASES = {
    "not set": (None, "shm", "", "tcp", "does not share its memory"),
    "all": ("local,shm,tcp", "shm", "", "tcp", "does not share its memory"),
    "shared memory and tcp": (" TCP , shm ", "shm", "", "tcp", "does not share its memory"),
    "tcp": ("tcp", "tcp", "shm disabled by MOONPOOL_PATHS", "tcp", "shm disabled by MOONPOOL_PATHS"),
    "local and tcp": ("local,tcp", "tcp", "shm disabled by MOONPOOL_PATHS", "tcp", "shm disabled by MOONPOOL_PATHS"),
}


@pytest.mark.parametrize(("variable", "near", "near_reason", "far", "far_reason"), CASES.values(), ids=CASES)
def test_data_takes_the_best_allowed_path_and_status_says_which_and_why(pool, monkeypatch, variable, near, near_reason, far, far_reason) -> None:
    if variable is not None:
        monkeypatch.setenv("MOONPOOL_PATHS", variable)
    store = set_up(pool.master.address, segment=0)
    try:
        expected = {(pool.sharing.hostname, near): near_reason, (pool.tcp_only.hostname, far): far_reason}
        size = 3 * MIB + 5
        for owner, _ in expected:
            move(store, owner, f"{owner} {variable}", size)
        # A view is a pin where memory is shared, and a copy elsewhere.
        assert [memoryview(store.get_buffer(f"{owner} {variable}")).readonly for owner, _ in expected] == [near == "shm", False]
        wait_until(lambda: len(reported_paths(pool.master, store)) == 2, "the node has told its paths", REPORTED_SECONDS)
        found = reported_paths(pool.master, store)
        assert found.keys() == expected.keys()
        for place, reason in expected.items():
            told = str(found[place]["reason"])
            assert reason in told if reason else told == "", place
            assert found[place]["written_bytes"] == size
            assert found[place]["read_bytes"] >= 2 * size
            assert found[place]["failures"] == 0
    finally:
        store.remove_all(force=True)
        store.close()


def test_a_nodes_own_memory_is_reached_locally(pool) -> None:
    store = set_up(pool.master.address, segment=16 * MIB)
    try:
        here = store.get_hostname()
        move(store, here, "mine")
        wait_until(lambda: (here, "local") in reported_paths(pool.master, store), "the node has told its paths", REPORTED_SECONDS)
        assert list(reported_paths(pool.master, store)) == [(here, "local")]
    finally:
        store.remove_all(force=True)
        store.close()


def test_own_memory_is_reached_over_tcp_when_nothing_else_is_allowed(pool, monkeypatch) -> None:
    monkeypatch.setenv("MOONPOOL_PATHS", "tcp")
    store = set_up(pool.master.address, segment=16 * MIB)
    try:
        here = store.get_hostname()
        move(store, here, "mine")
        wait_until(lambda: (here, "tcp") in reported_paths(pool.master, store), "the node has told its paths", REPORTED_SECONDS)
        assert list(reported_paths(pool.master, store)) == [(here, "tcp")]
    finally:
        store.remove_all(force=True)
        store.close()


def test_an_owner_that_no_allowed_path_reaches_is_an_error_in_time_and_a_miss(pool, monkeypatch) -> None:
    everywhere = set_up(pool.master.address, segment=0)
    value = move(everywhere, pool.tcp_only.hostname, "far")
    monkeypatch.setenv("MOONPOOL_PATHS", "local,shm")
    monkeypatch.setenv("MOONPOOL_OPERATION_TIMEOUT_MS", "3000")
    store = set_up(pool.master.address, segment=0)
    try:
        move(store, pool.sharing.hostname, "near")
        start = time.monotonic()
        assert store.get("far") == b"" and store.get_buffer("far") is None
        assert time.monotonic() - start < 10
        assert everywhere.get("far") == value
    finally:
        everywhere.remove_all(force=True)
        everywhere.close()
        store.close()


# A value, and what the one line of the error has to say beside the variable's name.
WRONG = [
    ("tpc", "did you mean 'tcp'?"),
    ("shm;tcp", "'shm;tcp'"),
    ("shm tcp", "local, shm, rdma, tcp"),
    ("rdma", '"protocol": "rdma"'),
    ("tcp,none", "'none'"),
    ("1", "local, shm, rdma, tcp"),
]


@pytest.mark.parametrize(("value", "named"), WRONG, ids=[value for value, _ in WRONG])
def test_a_wrong_value_is_a_code_and_one_line_that_names_it(pool, monkeypatch, capfd, value, named) -> None:
    monkeypatch.setenv("MOONPOOL_PATHS", value)
    store = MooncakeDistributedStore()
    arguments = ("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", pool.master.address)
    assert store.setup(*arguments) == INVALID
    lines = [line for line in capfd.readouterr().err.splitlines() if "setup failed" in line]
    assert len(lines) == 1 and "MOONPOOL_PATHS" in lines[0] and named in lines[0], lines
    monkeypatch.setenv("MOONPOOL_PATHS", "tcp")
    assert store.setup(*arguments) == 0
    assert store.close() == 0
