"""Point 5: kill -9 of the master under the stream of requests, and of a process that lends memory: nothing committed is lost with the master,
nothing removed comes back, and lost memory is a miss, never wrong bytes."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clusters import Reference
from guide import Guide
from mooncake.store import MooncakeDistributedStore
from moonpool.measuring import in_bounds
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component, Supervisor
from traffic import Traffic, check_fates

OBJECTS = 64
REMOVED = 8
READABLE_SECONDS = 2.0
PUT_SECONDS = 30.0
STORAGE = """
import sys, time
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup(sys.argv[1], "P2PHANDSHAKE", 128 << 20, 16 << 20, "tcp", "", sys.argv[2]) == 0
print("up", flush=True)
time.sleep(3600)
"""


RANDOM_BYTES = random.Random(5).randbytes(8 << 20)


def content(key: str) -> bytes:
    """The bytes that belong to a key: sizes from 1 byte to 4 MB, a range of its own for every key. Cheap, since it is asked for in measured times."""
    rng = random.Random(key)
    start = rng.randrange(4 << 20)
    return RANDOM_BYTES[start : start + rng.choice([1, 4096, 65537, 1 << 20, 4 << 20])]


def node(master: str, lent: int) -> MooncakeDistributedStore:
    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", lent, 64 << 20, "tcp", "", master) == 0
    return store


@dataclass
class Putter:
    """Puts one object after the other, each once, and remembers what came of it."""

    store: MooncakeDistributedStore
    results: dict[str, tuple[int, float]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Putter:
        self._thread = threading.Thread(target=self._run, name="putter")
        self._thread.start()
        return self

    def _run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            key = f"flight-{number}"
            started = time.monotonic()
            self.results[key] = (self.store.put(key, content(key)), time.monotonic() - started)
            number += 1
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._thread.join(2 * PUT_SECONDS)
        assert not self._thread.is_alive(), "a put did not come back"


@pytest.fixture
def nodes(both_of_each: Guide) -> Iterator[tuple[Guide, MooncakeDistributedStore, MooncakeDistributedStore]]:
    """Two nodes that lend memory, beside the four vLLM instances of the guide's cluster."""
    guide = both_of_each
    first, second = node(guide.master_address, 256 << 20), node(guide.master_address, 256 << 20)
    yield guide, first, second
    first.close()
    second.close()


@pytest.mark.cluster("guide-etcd")
def test_a_killed_master_started_again_has_every_committed_object_within_two_seconds(
    nodes: tuple[Guide, MooncakeDistributedStore, MooncakeDistributedStore], reference: Reference
) -> None:
    guide, first, second = nodes
    keys = [f"kept-{number}" for number in range(OBJECTS)]
    gone = [f"gone-{number}" for number in range(REMOVED)]
    for key in keys + gone:
        assert first.put(key, content(key)) == 0
    for key in gone:
        assert first.remove(key, True) == 0
    master = guide.component("master")
    with Traffic(guide.gateway_url, guide.model, len(reference.short_texts()), clients=2) as traffic, Putter(first) as putter:

        def kill_and_read() -> float:
            traffic.wait_for(4, 120)
            master.kill()
            guide.supervisor.start(master)
            restarted = time.monotonic()
            missing = set(keys)
            while missing and time.monotonic() < restarted + 20:
                missing = {key for key in missing if second.get(key) != content(key)}
            seconds = time.monotonic() - restarted
            assert not missing, f"{len(missing)} of {OBJECTS} objects are not readable {seconds:.1f} s after the master's restart"
            return seconds

        in_bounds(f"all {OBJECTS} objects are readable after the master's restart", kill_and_read, READABLE_SECONDS)
        traffic.wait_for(4, 120)
    for key in gone:
        assert second.is_exist(key) == 0 and second.get(key) == b"", f"{key} was removed and came back"
    check_puts(putter, second)
    check_fates(traffic.fates, reference.short_texts())


def check_puts(putter: Putter, reader: MooncakeDistributedStore) -> None:
    """Each put came back within its deadline; a good one is readable byte for byte (room is ample, so nothing was evicted)."""
    for key, (code, seconds) in putter.results.items():
        assert seconds <= PUT_SECONDS, f"put of {key} took {seconds:.1f} s"
        found = reader.get(key)
        assert found == content(key) if code == 0 else found in (b"", content(key)), f"{key}: put gave {code}, get gives {len(found)} bytes"


@pytest.fixture
def small_pool(tmp_path: Path) -> Iterator[tuple[Supervisor, str, Component]]:
    """A master and one process that lends memory, on ports that stay theirs."""
    port, metrics, storage_port = pick_free(3)
    address = f"127.0.0.1:{port}"
    with Supervisor() as supervisor:
        argv = [Path(sys.executable).parent / "mooncake_master", "--port", str(port), "--metrics_port", str(metrics), "--client_ttl", "3"]
        supervisor.start(Component("master", argv, tmp_path / "master.log"))
        wait_until(lambda: accepts("127.0.0.1", port), "the master listens")
        storage = Component("storage", [sys.executable, "-c", STORAGE, f"127.0.0.1:{storage_port}", address], tmp_path / "storage.log")
        start_storage(supervisor, storage, 1)
        yield supervisor, address, storage


def wait_until(condition, what: str, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


def start_storage(supervisor: Supervisor, storage: Component, time_number: int) -> None:
    supervisor.start(storage)
    wait_until(lambda: storage.log.read_text().splitlines().count("up") == time_number, f"the storage process is up: {storage.log.read_text()}")


def test_a_storage_process_killed_and_restarted_on_its_port_misses_its_old_objects_and_never_gives_wrong_bytes(
    small_pool: tuple[Supervisor, str, Component],
) -> None:
    supervisor, master, storage = small_pool
    client = node(master, 0)
    old = [f"old-{number}" for number in range(16)]
    new = [f"new-{number}" for number in range(16)]
    try:
        for key in old:
            assert client.put(key, content(key)) == 0
        storage.kill()
        start_storage(supervisor, storage, 2)
        # Until the master has noticed, a put may still be placed in the old incarnation, and has to fail then.
        for key in new:
            wait_until(lambda key=key: client.put(key, content(key)) == 0, f"{key} can be put")
        for key in old:
            assert client.get(key) == b"", f"{key} was lost with its memory"
        for key in new:
            assert client.get(key) == content(key)
    finally:
        client.close()
