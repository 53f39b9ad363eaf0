"""A pool whose data goes over RDMA: a master, an owner of memory at one end of the cables, users of it at the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "compat"))

import rdma_programs  # noqa: E402
from compat_programs import Master  # noqa: E402
from rdma_programs import Owner, open_store  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.timeout(3 * rdma_programs.GENEROUS_SECONDS))
        if not rdma_programs.devices():
            item.add_marker(pytest.mark.skip(reason="no RDMA device here; ./moonpool test --rdma brings its own"))
        elif item.get_closest_marker("cuts") and not rdma_programs.MAY_CUT:
            item.add_marker(pytest.mark.skip(reason="takes links down, which is done in the guest alone"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuts: takes the links of NICs down")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines for a slow machine, and RDMA as the only path, unless a test says otherwise."""
    for name, value in rdma_programs.PATIENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MOONPOOL_PATHS", "rdma")


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    program = Master(tmp_path_factory.mktemp("master"), "--default_kv_lease_ttl", "500")
    yield program
    program.kill()


@pytest.fixture(scope="session")
def owner(master: Master, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """For tests that leave it as it was."""
    program = Owner(tmp_path_factory.mktemp("owner"), master)
    yield program
    program.kill()


@pytest.fixture
def store(master: Master, owner: Owner, patient: None) -> Iterator[object]:
    """A user of an empty pool, whose only path is RDMA."""
    opened = open_store(master)
    yield opened
    opened.remove_all(force=True)
    opened.close()


@pytest.fixture
def own_master(tmp_path: Path) -> Iterator[Master]:
    """A master whose nodes the test may kill."""
    program = Master(tmp_path, "--default_kv_lease_ttl", "500", "--client_ttl", "3")
    yield program
    program.kill()
