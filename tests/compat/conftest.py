"""What the compatibility tests share: a master, a second node, and stores on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from compat_programs import MIB, Master, Node, set_up  # noqa: E402


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    program = Master(tmp_path_factory.mktemp("master"), "--default_kv_lease_ttl", "500")
    yield program
    program.kill()


@pytest.fixture
def own_master(tmp_path: Path) -> Iterator[Master]:
    """A master that the test may stop or kill."""
    program = Master(tmp_path, "--default_kv_lease_ttl", "500")
    yield program
    program.kill()


@pytest.fixture(scope="session")
def other_node(master: Master, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    program = Node(tmp_path_factory.mktemp("node"), master.address, 128 * MIB)
    yield program
    program.kill()


@pytest.fixture(scope="session")
def shared_store(master: Master, other_node: Node) -> Iterator[object]:
    """Lends nothing itself: every value lies in the other process."""
    store = set_up(master.address, segment=0)
    yield store
    store.close()


@pytest.fixture
def store(shared_store):
    """An empty pool. What leases hold is removed all the same."""
    yield shared_store
    assert shared_store.remove_all(force=True) >= 0
