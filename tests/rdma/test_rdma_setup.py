"""Hosts on which RDMA cannot be had: what setup says, and that TCP is not in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compat_programs import MIB, Master
from rdma_programs import GENEROUS_SECONDS, PATIENT, USER_NICS, devices

INVALID = -600
NOT_SUPPORTED = -1012

SETUP = """
import sys
from mooncake.store import MooncakeDistributedStore
for protocol in sys.argv[4:]:
    store = MooncakeDistributedStore()
    print(protocol, store.setup("127.0.0.1", "P2PHANDSHAKE", int(sys.argv[3]), 16 << 20, protocol, sys.argv[2], sys.argv[1]), flush=True)
    store.close()
"""


def set_up(master: Master, nics: str, segment: int, *protocols: str, before: tuple[str, ...] = (), **env: str) -> tuple[dict[str, int], list[str]]:
    """Setup in a process of its own, by each protocol: the codes, and the lines on standard error that say what failed."""
    argv = [*before, sys.executable, "-c", SETUP, master.address, nics, str(segment), *protocols]
    environment = {**os.environ, **PATIENT, "MOONPOOL_PATHS": "local,rdma,tcp", **env}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=GENEROUS_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    codes = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}
    return codes, [line for line in done.stderr.splitlines() if "setup failed" in line]


def test_a_device_that_does_not_exist_is_an_error_that_lists_those_that_do(master) -> None:
    codes, errors = set_up(master, "rxe_9", 0, "rdma", "tcp")
    assert codes == {"rdma": INVALID, "tcp": 0}
    assert len(errors) == 1 and "rxe_9" in errors[0]
    assert all(name in errors[0] for name in devices()), errors


@pytest.mark.parametrize("nics", ["", "auto"], ids=["empty", "auto"])
def test_without_a_name_all_that_are_up_are_taken(master, nics) -> None:
    assert set_up(master, nics, 0, "rdma")[0] == {"rdma": 0}


def test_memory_that_may_not_be_locked_is_an_error_that_names_limit_and_remedy(master) -> None:
    tools = [shutil.which(name) for name in ("setpriv", "prlimit")]
    if not all(tools) or os.geteuid() != 0:
        pytest.skip("only root can give up the right to lock memory (setpriv, prlimit)")
    # root without CAP_IPC_LOCK, as in a container.
    before = ("setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", f"--memlock={MIB}:{MIB}")
    codes, errors = set_up(master, USER_NICS, 64 * MIB, "rdma", "tcp", before=before)
    assert codes["rdma"] < 0 and codes["tcp"] == 0
    assert len(errors) == 1, errors
    for words in ("1 MiB", "ulimit -l unlimited", "RLIMIT_MEMLOCK"):
        assert words in errors[0]


def test_without_libibverbs_one_line_says_what_is_missing_and_tcp_works(master, tmp_path: Path) -> None:
    # The loader takes the first file of that name, which is none that it can load.
    for name in ("libibverbs.so.1", "libibverbs.so"):
        (tmp_path / name).write_bytes(b"")
    codes, errors = set_up(master, USER_NICS, 0, "rdma", "tcp", LD_LIBRARY_PATH=str(tmp_path))
    assert codes == {"rdma": NOT_SUPPORTED, "tcp": 0}
    assert len(errors) == 1 and "libibverbs" in errors[0] and "tcp" in errors[0], errors
