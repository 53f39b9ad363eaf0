"""What the compatibility tests share: a master, a second node, and stores on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from compat_programs import MIB, Master, Program, set_up  # noqa: E402


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
def other_node(master: Master, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A second client process that lends memory, so that data really crosses between processes."""
    code = (
        "import sys, signal; from mooncake.store import MooncakeDistributedStore as S; s = S(); "
        f"assert s.setup('127.0.0.1', 'P2PHANDSHAKE', {128 * MIB}, 0, 'tcp', '', '{master.address}') == 0; "
        "print(s.get_hostname(), flush=True); signal.sigwait([signal.SIGTERM])"
    )
    program = Program([sys.executable, "-c", code], tmp_path_factory.mktemp("node") / "node.log")
    program.ready(lambda: ":" in program.log.read_text())
    program.hostname = program.log.read_text().split()[-1]
    yield program
    program.kill()


@pytest.fixture(scope="session")
def shared_store(master: Master, other_node: Program) -> Iterator[object]:
    """Lends nothing itself: every value lies in the other process."""
    store = set_up(master.address, segment=0)
    yield store
    store.close()


@pytest.fixture
def store(shared_store):
    """An empty pool. What leases hold is removed all the same."""
    yield shared_store
    assert shared_store.remove_all(force=True) >= 0
