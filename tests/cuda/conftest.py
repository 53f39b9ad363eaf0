"""A pool for tests on real GPUs: a master, a process that lends memory to it, and stores in this one. Without a GPU all of them are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "compat"))

from compat_programs import MIB, Master, Node, set_up  # noqa: E402


def _why_not() -> str:
    try:
        import torch
    except ImportError:
        return "torch is not installed here"
    return "" if torch.cuda.is_available() else "torch sees no GPU here"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    if ours and (reason := _why_not()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=f"{reason}; ./moonpool test --cuda runs these on a GPU host"))


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    program = Master(tmp_path_factory.mktemp("master"), "--default_kv_lease_ttl", "500")
    yield program
    program.kill()


@pytest.fixture(scope="session")
def other_node(master: Master, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Another process's memory: reached as shared memory, or over TCP where a test asks for that."""
    program = Node(tmp_path_factory.mktemp("node"), master.address, 512 * MIB)
    yield program
    program.kill()


@pytest.fixture(params=["best", "tcp"])
def store(request: pytest.FixtureRequest, master: Master, other_node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A user of an empty pool: in place in shared memory, and staged over TCP."""
    if request.param == "tcp":
        monkeypatch.setenv("MOONPOOL_PATHS", "tcp")
    opened = set_up(master.address, segment=0)
    yield opened
    assert opened.remove_all(force=True) >= 0
    opened.close()


@pytest.fixture(params=["here", "there"])
def any_store(request: pytest.FixtureRequest, master: Master, other_node: Node) -> Iterator[object]:
    """The same with the memory in this process, or in another."""
    opened = set_up(master.address, segment=256 * MIB if request.param == "here" else 0)
    yield opened
    assert opened.remove_all(force=True) >= 0
    opened.close()
