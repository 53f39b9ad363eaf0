"""The programs of the wheel, and the wheel itself: it runs where nothing of ours is installed, beside anybody's OpenSSL and protobuf."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import venv
from pathlib import Path

import mooncake._native
import pytest
from compat_programs import BIN, MIB, Master, accepts, free_port, http_ok, run_python, set_up, wait_until

PACKAGE = Path(mooncake._native.__file__).resolve().parent
DIST = Path(__file__).resolve().parents[2] / "dist"


def run(*argv: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / argv[0]), *argv[1:]], capture_output=True, text=True, timeout=timeout, check=False)


def test_the_program_says_what_it_is_and_what_it_can() -> None:
    assert re.fullmatch(r"moonpool \d+\.\d+\.\d+\n", run("moonpool", "--version").stdout)
    help_text = run("moonpool", "--help")
    assert help_text.returncode == 0
    for command in ("master", "node", "gateway", "status", "metadata", "up", "mooncake_master", "mooncake_client"):
        assert command in help_text.stdout


def test_an_unknown_command_names_the_nearest() -> None:
    done = run("moonpool", "gatway")
    assert done.returncode == 2 and "did you mean 'gateway'?" in done.stderr
    assert run("moonpool").returncode == 2


@pytest.mark.parametrize("name", ["mooncake_master", "mooncake_client", "transfer_engine_bench", "mooncake_http_metadata_server"])
def test_the_incumbents_programs_are_there(name) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "port" in done.stdout + done.stderr or "mode" in done.stdout + done.stderr
    wrong = run(name, "--no_such_flag=1")
    assert wrong.returncode != 0 and "no_such_flag" in wrong.stderr


def test_status_shows_a_running_master_and_says_when_there_is_none(master, store) -> None:
    assert store.put("k", b"x") == 0
    done = run("moonpool", "status", "--master", f"127.0.0.1:{master.admin_port}")
    assert done.returncode == 0, done.stderr
    assert "term" in done.stdout
    document = run("moonpool", "status", "--json", f"127.0.0.1:{master.admin_port}")
    assert document.returncode == 0 and document.stdout.startswith("{")
    nobody = run("moonpool", "status", "--master", f"127.0.0.1:{free_port()}")
    assert nobody.returncode == 1 and "start the master" in nobody.stderr


def test_the_master_ends_by_its_own_process_id(tmp_path) -> None:
    master = Master(tmp_path)
    master.send(signal.SIGTERM)
    assert master.process.wait(10) == 0


def test_a_standalone_node_lends_what_clients_use(own_master) -> None:
    from compat_programs import Program

    port = free_port()
    node = Program(
        [str(BIN / "mooncake_client"), "--host=127.0.0.1", f"--port={port}", "--metadata_server=P2PHANDSHAKE",
         f"--master_server_address={own_master.address}", "--global_segment_size", "32 MB"], own_master.log.parent / "node.log",
    )  # fmt: skip
    try:
        node.ready(lambda: accepts(port))
        store = set_up(own_master.address, segment=0)
        wait_until(lambda: store.put("k", b"x" * MIB) == 0, "the node's memory is in the pool")
        assert store.get("k") == b"x" * MIB
        assert store.get_replica_desc("k")[0].get_memory_descriptor().buffer_descriptor.transport_endpoint == f"127.0.0.1:{port}"
        store.close()
    finally:
        node.kill()


def test_sglang_finds_the_segments_it_polls_for(master, other_node) -> None:
    assert http_ok(f"http://127.0.0.1:{master.admin_port}/get_all_segments")


def _foreign_libraries(file: Path) -> dict[str, str]:
    """Name to path of every library beside those of libc and the C++ runtime."""
    text = subprocess.run(["ldd", str(file)], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "not found" not in text
    found = dict(re.findall(r"(\S+) => (\S+)", text))
    usual = re.compile(r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s)\.so\.\d+|linux-vdso.*|/lib.*")
    return {name: path for name, path in found.items() if not usual.fullmatch(name)}


def test_only_what_the_wheel_carries_is_loaded_and_only_the_entry_is_visible() -> None:
    root = PACKAGE.parent / "moonpool"
    for file in (PACKAGE / Path(mooncake._native.__file__).name, root / "bin" / "moonpool"):
        for name, path in _foreign_libraries(file).items():
            assert Path(path).resolve().is_relative_to(root / "lib"), f"{file} loads {name} from {path}"
    symbols = subprocess.run(["nm", "-D", "--defined-only", mooncake._native.__file__], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split()[-1] for line in symbols.stdout.splitlines()] == ["PyInit__native"]


def test_the_licences_of_what_is_linked_go_along() -> None:
    texts = {file.stem: file.read_text(errors="replace") for file in (PACKAGE.parent / "moonpool" / "licenses").iterdir()}
    for name in ("libprotobuf-lite", "libssl", "libhiredis", "nanobind"):
        assert any(stem.startswith(name) and ("Redistribution" in text or "Apache" in text) for stem, text in texts.items()), name


@pytest.mark.parametrize("others", [["google.protobuf"], ["ssl", "hashlib"], ["torch"], ["vllm"]], ids=lambda names: names[0])
def test_it_lives_beside_other_libraries_in_one_process(master, others) -> None:
    if any(importlib.util.find_spec(name.split(".")[0]) is None for name in others):
        pytest.skip(f"{others[0]} is not installed here")
    imports = "; ".join(f"import {name}" for name in others)
    code = f"""
{imports}
from mooncake.store import MooncakeDistributedStore as S
s = S(); assert s.setup('127.0.0.1', 'P2PHANDSHAKE', 1 << 22, 1 << 20, 'tcp', '', '{master.address}') == 0
for i in range(50):
    assert s.put(f'beside{{i}}', bytes([i]) * 10000) == 0 and s.get(f'beside{{i}}') == bytes([i]) * 10000
import ssl, hashlib, socket
assert hashlib.sha256(b'').hexdigest().startswith('e3b0c442')
ssl.create_default_context()
s.close()
"""
    done = run_python(code, timeout=110)
    assert done.returncode == 0, done.stderr


def test_the_wheel_runs_in_a_venv_of_nothing_else(tmp_path, master) -> None:
    wheels = sorted(DIST.glob("moonpool-*.whl"))
    if not wheels:
        pytest.skip("no wheel in dist/: ./moonpool build makes one")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", wheels[-1]], check=True, timeout=100)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_", "VIRTUAL_ENV"))}
    code = f"""
from mooncake.store import MooncakeDistributedStore as S
import mooncake.engine, mooncake.mooncake_config, mooncake.async_store, mooncake.buffer_pool, mooncake_vllm_adaptor, sys
s = S(); assert s.setup('127.0.0.1', 'P2PHANDSHAKE', 1 << 22, 1 << 20, 'tcp', '', '{master.address}') == 0
assert s.put('venv', b'x') == 0 and s.get('venv') == b'x'
assert sorted(name for name in sys.modules if name in ('numpy', 'torch')) == []
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    version = subprocess.run([tmp_path / "venv/bin/moonpool", "--version"], capture_output=True, text=True, timeout=60, env=environment, check=True)
    assert version.stdout == run("moonpool", "--version").stdout
    assert sys.executable != str(python)
