"""Point 7: bad input at the edges of real processes: a clear error within its deadline, and the process goes on."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mooncake.store import MooncakeDistributedStore
from moonpool.http_client import is_healthy, post
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component, Supervisor

PROGRAMS = Path(sys.executable).parent
SETUP_SECONDS = 40.0
GOOD = {
    "local_hostname": "127.0.0.1",
    "metadata_server": "P2PHANDSHAKE",
    "protocol": "tcp",
    "device_name": "",
    "master_server_address": "127.0.0.1:50051",
    "global_segment_size": "64MB",
    "local_buffer_size": "16MB",
}


@dataclass
class Pool:
    supervisor: Supervisor
    master: Component
    gateway: Component
    port: int
    metrics: int
    metadata: int
    gateway_port: int


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A master with its own metadata server, and a gateway whose only instances do not answer."""
    folder = tmp_path_factory.mktemp("bad-input")
    port, metrics, metadata, gateway_port, nobody = pick_free(5)
    with Supervisor() as supervisor:
        argv = [PROGRAMS / "mooncake_master", "--port", str(port), "--metrics_port", str(metrics), "--enable_http_metadata_server"]
        argv += ["--http_metadata_server_port", str(metadata)]
        master = supervisor.start(Component("master", argv, folder / "master.log"))
        names = ["--prefill", f"127.0.0.1:{nobody}", "--decode", f"127.0.0.1:{nobody}"]
        argv = [PROGRAMS / "moonpool", "gateway", "--model", "m", *names, "--port", str(gateway_port)]
        gateway = supervisor.start(Component("gateway", argv, folder / "gateway.log"))
        deadline = time.monotonic() + 20
        while not all(accepts("127.0.0.1", number) for number in (port, metrics, metadata, gateway_port)):
            supervisor.check()
            assert time.monotonic() < deadline, "master and gateway do not listen"
            time.sleep(0.05)
        yield Pool(supervisor, master, gateway, port, metrics, metadata, gateway_port)


def store(pool: Pool) -> MooncakeDistributedStore:
    client = MooncakeDistributedStore()
    assert client.setup("127.0.0.1", "P2PHANDSHAKE", 64 << 20, 16 << 20, "tcp", "", f"127.0.0.1:{pool.port}") == 0
    return client


def assert_pool_works(pool: Pool) -> None:
    pool.supervisor.check()
    client = store(pool)
    try:
        assert client.put("still-alive", b"yes") == 0 and client.get("still-alive") == b"yes"
        assert client.remove("still-alive", True) == 0
    finally:
        client.close()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SETUP_SECONDS + 20, env={"PATH": "/usr/bin:/bin", **environment}
    )


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("local_hostname", 5),
        ("metadata_server", "ftp://somewhere"),
        ("metadata_server", 7),
        ("protocol", "pigeon"),
        ("device_name", ["mlx5_0"]),
        ("master_server_address", "127.0.0.1:port"),
        ("master_server_address", "127.0.0.1:99999"),
        ("global_segment_size", "3 elephants"),
        ("global_segment_size", -1),
        ("local_buffer_size", "50%"),
    ],
)
def test_each_wrong_field_of_the_config_is_named_with_the_file(field: str, wrong: object, tmp_path: Path) -> None:
    path = tmp_path / "mooncake.json"
    path.write_text(json.dumps({**GOOD, field: wrong}, indent=2))
    done = run_python("from mooncake.mooncake_config import MooncakeConfig as C; C.load_from_env()", MOONCAKE_CONFIG_PATH=str(path))
    assert done.returncode != 0
    assert field in done.stderr and str(path) in done.stderr, done.stderr


def test_a_config_that_is_no_json_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.json"
    path.write_text('{\n  "local_hostname": "127.0.0.1",\n  "protocol" "tcp"\n}')
    done = run_python("from mooncake.mooncake_config import MooncakeConfig as C; C.load_from_env()", MOONCAKE_CONFIG_PATH=str(path))
    assert done.returncode != 0 and str(path) in done.stderr and "3" in done.stderr, done.stderr


def test_a_master_whose_port_is_in_use_says_so_and_ends(pool: Pool) -> None:
    argv = [PROGRAMS / "mooncake_master", "--port", str(pool.port), "--metrics_port", str(pick_free(1)[0])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and str(pool.port) in done.stdout + done.stderr
    assert_pool_works(pool)


def test_a_gateway_whose_port_is_in_use_says_so_and_ends(pool: Pool) -> None:
    argv = [PROGRAMS / "moonpool", "gateway", "--model", "m", "--prefill", "h:1", "--decode", "h:2", "--port", str(pool.gateway_port)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and str(pool.gateway_port) in done.stdout + done.stderr


def test_an_unknown_flag_of_the_master_names_the_nearest(pool: Pool) -> None:
    done = subprocess.run([PROGRAMS / "mooncake_master", "--metrics_prot", "1"], capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and "metrics_port" in done.stdout + done.stderr


SETUP = """
from mooncake.store import MooncakeDistributedStore
raise SystemExit(0 if MooncakeDistributedStore().setup("127.0.0.1", {metadata!r}, 16 << 20, 16 << 20, "tcp", "", {master!r}) < 0 else 3)
"""


@pytest.mark.parametrize("what", ["metadata server", "master", "unresolvable host"])
def test_setup_without_a_reachable_peer_fails_within_its_deadline_and_names_it(what: str, pool: Pool) -> None:
    nobody = pick_free(1)[0]
    metadata, master = "P2PHANDSHAKE", f"127.0.0.1:{pool.port}"
    if what == "metadata server":
        metadata = named = f"http://127.0.0.1:{nobody}/metadata"
    elif what == "master":
        master = named = f"127.0.0.1:{nobody}"
    else:
        master, named = "no-such-host.invalid:50051", "no-such-host.invalid"
    started = time.monotonic()
    done = run_python(SETUP.format(metadata=metadata, master=master))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < SETUP_SECONDS
    assert named.removeprefix("http://").removesuffix("/metadata") in done.stderr + done.stdout


def test_keys_of_no_byte_and_of_a_megabyte_are_refused_and_the_store_goes_on(pool: Pool) -> None:
    client = store(pool)
    try:
        for key in ("", "k" * (1 << 20)):
            assert client.put(key, b"value") == -600 or client.put(key, b"value") == -400
            assert client.get(key) == b""
        assert client.put("ordinary", b"value") == 0 and client.get("ordinary") == b"value"
        assert client.remove("ordinary", True) == 0
    finally:
        client.close()


def test_a_buffer_that_is_too_small_is_refused_and_stays_untouched(pool: Pool) -> None:
    import numpy

    client = store(pool)
    try:
        assert client.put("big", b"x" * 4096) == 0
        buffer = numpy.zeros(4096, dtype=numpy.uint8)
        assert client.register_buffer(buffer.ctypes.data, buffer.nbytes) == 0
        assert client.get_into("big", buffer.ctypes.data, 1024) == -600
        assert not buffer.any()
        assert client.get_into("big", buffer.ctypes.data, 4096) == 4096
        assert client.unregister_buffer(buffer.ctypes.data) == 0
        assert client.remove("big", True) == 0
    finally:
        client.close()


@pytest.mark.parametrize("where", ["port", "metrics", "metadata", "gateway_port"])
def test_garbage_on_a_port_harms_nobody(where: str, pool: Pool) -> None:
    rng = random.Random(where)
    number = getattr(pool, where)
    for size in (1, 7, 64, 4096, 1 << 16):
        with socket.create_connection(("127.0.0.1", number), 5) as connection:
            connection.settimeout(5)
            try:
                connection.sendall(rng.randbytes(size))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            except TimeoutError:
                pytest.fail(f"{where} left a connection with {size} bytes of garbage open")
            except OSError:
                pass  # reset: what a stranger may expect
    assert pool.master.running and pool.gateway.running
    assert_pool_works(pool)
    assert is_healthy(f"http://127.0.0.1:{pool.metrics}/health")


def test_a_stranger_who_connects_and_says_nothing_is_not_waited_for(pool: Pool) -> None:
    with socket.create_connection(("127.0.0.1", pool.port), 5):
        assert_pool_works(pool)


def test_a_request_without_instances_that_answer_is_refused_as_such(pool: Pool) -> None:
    answer = post(f"http://127.0.0.1:{pool.gateway_port}/v1/completions", {"model": "m", "prompt": "hello"}, timeout=60)
    assert answer.status in (502, 503, 504) and "error" in answer.json


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": "m"', b"\xff\xfe", b'{"model": "m", "prompt": "x", "stream": "perhaps"}'])
def test_a_body_that_is_no_request_is_the_clients_error(body: bytes, pool: Pool) -> None:
    answer = post(f"http://127.0.0.1:{pool.gateway_port}/v1/completions", body, timeout=60)
    assert 400 <= answer.status < 600 and answer.status != 500, answer.text
    assert pool.gateway.running
