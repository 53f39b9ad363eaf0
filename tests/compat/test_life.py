"""Setup, close, and what happens around them: wrong arguments, wrong calls, a stopped master, forks, the interpreter's end."""

from __future__ import annotations

import os
import re
import threading
import time

import pytest
from compat_programs import MIB, free_port, longest_pause, run_python, set_up, stopped, wait_until
from mooncake.store import MooncakeDistributedStore
from moonpool.measuring import in_bounds

INVALID = -600


def test_calls_before_setup_and_after_close_answer_codes(master) -> None:
    def check(store: MooncakeDistributedStore) -> None:
        assert store.put("k", b"x") < 0
        assert store.get("k") == b""
        assert store.get_batch(["a", "b"]) == [b"", b""]
        assert store.get_buffer("k") is None
        assert store.is_exist("k") < 0
        assert store.batch_is_exist(["a", "b"]) == [INVALID, INVALID]
        assert store.batch_is_exist([]) == []
        assert store.batch_put_from(["a"], [1], [1]) == [INVALID]
        assert store.batch_get_into_multi_buffers(["a"], [[1]], [[1]]) == [INVALID]
        assert store.get_into("k", 1, 1) < 0
        assert store.get_size("k") < 0
        assert store.remove("k") < 0
        assert store.remove_all() < 0
        assert store.remove_by_regex("k") < 0
        assert store.register_buffer(1, 1) < 0
        assert store.get_replica_desc("k") == []
        assert store.get_hostname() == ""
        assert store.health_check() == 1
        assert store.close() == 0

    store = MooncakeDistributedStore()
    check(store)
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master.address) == 0
    assert store.health_check() == 0
    assert store.close() == 0
    check(store)


def test_a_store_can_be_set_up_again_after_close_and_not_before(master, capfd) -> None:
    store = MooncakeDistributedStore()
    for cycle in range(3):
        assert store.setup("127.0.0.1", "P2PHANDSHAKE", 4 * MIB, MIB, "tcp", "", master.address) == 0
        host, _, port = store.get_hostname().rpartition(":")
        assert host == "127.0.0.1" and 12300 <= int(port) <= 14300
        assert store.put(f"cycle{cycle}", b"x") == 0
        assert store.setup("127.0.0.1", "P2PHANDSHAKE", 4 * MIB, MIB, "tcp", "", master.address) == INVALID
        assert "call close() first" in capfd.readouterr().err
        assert store.is_exist(f"cycle{cycle}") == 1
        assert store.remove(f"cycle{cycle}", True) == 0
        assert store.close() == 0


def test_the_first_call_without_setup_says_so_once(capfd) -> None:
    store = MooncakeDistributedStore()
    for _ in range(5):
        store.put("k", b"x")
    lines = [line for line in capfd.readouterr().err.splitlines() if "setup()" in line]
    assert len(lines) == 1 and "put" in lines[0]


def test_close_takes_the_objects_of_this_node_with_it(own_master) -> None:
    keeper = set_up(own_master.address, segment=0)
    lender = set_up(own_master.address, segment=16 * MIB)
    assert keeper.put("k", b"x") == 0
    assert lender.close() == 0
    wait_until(lambda: keeper.is_exist("k") == 0, "the object of a closed node is gone")
    assert keeper.get("k") == b""
    keeper.close()


def test_a_pure_server_cannot_put(master) -> None:
    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 4 * MIB, 0, "tcp", "", master.address) == 0
    assert store.put("k", b"x") < 0
    store.close()


def test_setup_takes_a_dict_with_sizes_as_texts(master) -> None:
    store = MooncakeDistributedStore()
    config = {"local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "global_segment_size": "16MB", "local_buffer_size": "1 mb",
              "protocol": "tcp", "rdma_devices": "", "master_server_addr": master.address}  # fmt: skip
    assert store.setup(config) == 0
    assert store.put("dict", b"x") == 0
    assert store.remove("dict", True) == 0
    assert store.close() == 0
    assert store.setup(config={**config, "global_segment_size": "50%"}) == INVALID
    assert store.setup({"local_hostname": "127.0.0.1"}) == INVALID


def test_setup_accepts_every_keyword_and_names_those_without_effect(master, capfd) -> None:
    store = MooncakeDistributedStore()
    code = store.setup(
        "127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master.address, None, enable_ssd_offload=True, ssd_offload_path="/x",
        tenant_id="default", enable_client_http_server=False, client_http_port=9300, tenantid="t", some_future_option=3,
    )  # fmt: skip
    assert code == 0
    log = capfd.readouterr().err
    assert "some_future_option" in log and "'tenantid'" in log and "did you mean 'tenant_id'?" in log and "enable_ssd_offload" in log
    store.close()


def test_tenants_do_not_see_each_other(master) -> None:
    ours = set_up(master.address, segment=16 * MIB)
    theirs = set_up(master.address, segment=0, tenant_id="other")
    assert ours.put("k", b"ours") == 0
    assert theirs.is_exist("k") == 0
    assert theirs.put("k", b"theirs") == 0
    assert (ours.get("k"), theirs.get("k")) == (b"ours", b"theirs")
    assert ours.remove_all(force=True) == 1
    assert theirs.get("k") == b"theirs"
    theirs.remove_all(force=True)
    for store in (ours, theirs):
        store.close()


# One argument wrong in turn, and what the log line must name.
WRONG = [
    ({"local_hostname": ""}, "local_hostname"),
    ({"local_hostname": "no.such.host.invalid"}, "no.such.host.invalid"),
    ({"local_hostname": "127.0.0.1:99999"}, "99999"),
    ({"local_hostname": "192.0.2.1"}, "192.0.2.1"),
    ({"metadata_server": "nonsense://x"}, "nonsense"),
    ({"metadata_server": "etcd://127.0.0.1:{closed}"}, "{closed}"),
    ({"metadata_server": "redis://127.0.0.1:{closed}"}, "{closed}"),
    ({"metadata_server": "http://127.0.0.1:{closed}/metadata"}, "{closed}"),
    ({"metadata_server": "http://no.such.host.invalid:80/metadata"}, "no.such.host.invalid"),
    ({"global_segment_size": "50%"}, "global_segment_size"),
    ({"global_segment_size": -1}, "global_segment_size"),
    ({"global_segment_size": 1 << 59}, str(1 << 59)),
    ({"local_buffer_size": "4 XB"}, "local_buffer_size"),
    ({"protocol": "tpc"}, "did you mean 'tcp'?"),
    ({"master_server_addr": ""}, "master_server_addr"),
    ({"master_server_addr": "127.0.0.1:{closed}"}, "{closed}"),
    ({"master_server_addr": "no.such.host.invalid:50051"}, "no.such.host.invalid"),
    ({"master_server_addr": "127.0.0.1:port"}, "port"),
    ({"client_http_port": 70000}, "client_http_port"),
]


@pytest.mark.parametrize(("change", "named"), WRONG, ids=[f"{key}={value}" for case, _ in WRONG for key, value in case.items()])
def test_a_wrong_argument_is_a_negative_code_and_one_line_within_its_deadline(master, capfd, monkeypatch, change, named) -> None:
    monkeypatch.setenv("MOONPOOL_SETUP_TIMEOUT_MS", "2000")
    closed = str(free_port())
    right = {"local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "global_segment_size": MIB, "local_buffer_size": MIB,
             "protocol": "tcp", "rdma_devices": "", "master_server_addr": master.address}  # fmt: skip
    wrong = {key: value.replace("{closed}", closed) if isinstance(value, str) else value for key, value in change.items()}
    store = MooncakeDistributedStore()
    start = time.monotonic()
    assert store.setup(**{**right, **wrong}) < 0
    assert time.monotonic() - start < 8
    log = capfd.readouterr().err
    lines = [line for line in log.splitlines() if "setup failed" in line]
    assert len(lines) == 1, log
    assert named.replace("{closed}", closed) in lines[0]
    assert store.setup(**right) == 0
    store.close()


# No host has a device of that name, and few that run these tests have RDMA at all: each way it is one line that says what to do.
def test_rdma_without_the_device_is_a_negative_code_and_one_line(master, capfd) -> None:
    store = MooncakeDistributedStore()
    arguments = {"local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "global_segment_size": MIB, "local_buffer_size": MIB,
                 "rdma_devices": "no_such_nic0", "master_server_addr": master.address}  # fmt: skip
    assert store.setup(**arguments, protocol="rdma") < 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "setup failed" in line]
    assert len(lines) == 1 and "rdma" in lines[0] and "tcp" in lines[0], lines
    assert store.setup(**arguments, protocol="tcp") == 0
    store.close()


@pytest.mark.parametrize(("name", "value"), [("MOONPOOL_RDMA_MTU", "1500"), ("MC_GID_INDEX", "first"), ("MOONPOOL_RDMA_GIDINDEX", "3")])
def test_a_wrong_rdma_variable_is_one_line_that_names_it_and_nothing_to_tcp(master, capfd, monkeypatch, name, value) -> None:
    monkeypatch.setenv(name, value)
    store = MooncakeDistributedStore()
    arguments = ("127.0.0.1", "P2PHANDSHAKE", MIB, MIB)
    assert store.setup(*arguments, "rdma", "", master.address) == -600
    lines = [line for line in capfd.readouterr().err.splitlines() if "setup failed" in line]
    assert len(lines) == 1 and name in lines[0], lines
    assert store.setup(*arguments, "tcp", "", master.address) == 0
    store.close()


def test_arguments_of_the_wrong_type_raise_type_error(master) -> None:
    store = MooncakeDistributedStore()
    with pytest.raises(TypeError):
        store.setup(1, "P2PHANDSHAKE", MIB, MIB, "tcp", "", master.address)
    with pytest.raises(TypeError):
        store.setup("127.0.0.1", "P2PHANDSHAKE", None, MIB, "tcp", "", master.address)
    with pytest.raises(TypeError):
        store.setup("127.0.0.1")


def test_the_cluster_token_comes_from_the_environment(tmp_path, capfd, monkeypatch) -> None:
    from compat_programs import Master

    secret = "a-token-of-this-cluster"
    token_file = tmp_path / "token"
    token_file.write_text(secret + "\n")
    guarded = Master(tmp_path, env={"MOONPOOL_CLUSTER_TOKEN": secret})
    try:
        store = MooncakeDistributedStore()
        arguments = ("127.0.0.1", "P2PHANDSHAKE", MIB, MIB, "tcp", "", guarded.address)
        monkeypatch.setenv("MOONPOOL_SETUP_TIMEOUT_MS", "3000")
        assert store.setup(*arguments) < 0
        monkeypatch.setenv("MOONPOOL_CLUSTER_TOKEN", "wrong")
        assert store.setup(*arguments) < 0
        monkeypatch.delenv("MOONPOOL_CLUSTER_TOKEN")
        monkeypatch.setenv("MOONPOOL_CLUSTER_TOKEN_FILE", str(tmp_path / "absent"))
        assert store.setup(*arguments) < 0
        log = capfd.readouterr().err
        assert "MOONPOOL_CLUSTER_TOKEN_FILE" in log and "token" in log
        monkeypatch.setenv("MOONPOOL_CLUSTER_TOKEN_FILE", str(token_file))
        assert store.setup(*arguments) == 0
        store.close()
        assert secret not in capfd.readouterr().err + guarded.log.read_text()
    finally:
        guarded.kill()


def test_other_threads_run_while_calls_wait_for_a_stopped_master(own_master, monkeypatch) -> None:
    monkeypatch.setenv("MOONPOOL_OPERATION_TIMEOUT_MS", "1500")
    store = set_up(own_master.address)
    assert store.put("k", b"x" * 1000) == 0
    calls = [
        lambda: store.put("new", b"x"), lambda: store.get("k"), lambda: store.batch_is_exist(["k"]), lambda: store.get_size("k"),
        lambda: store.remove("k"), lambda: store.health_check(), lambda: store.batch_get_replica_desc(["k"]), lambda: store.get_buffer("k"),
        lambda: store.remove_all(), lambda: store.batch_put_from(["n"], [id(store)], [8]),
    ]  # fmt: skip
    with stopped(own_master):
        for call in calls:
            # A held interpreter lock would show as a pause as long as the call's deadline.
            in_bounds("the longest pause", lambda call=call: longest_pause(call, 8), 1.0)
    assert store.get("k") in (b"x" * 1000, b"")
    store.close()


def test_health_check_tells_a_dead_master(own_master, monkeypatch) -> None:
    monkeypatch.setenv("MOONPOOL_OPERATION_TIMEOUT_MS", "1000")
    store = set_up(own_master.address)
    assert store.health_check() == 0
    own_master.kill()
    assert store.health_check() == 2
    start = time.monotonic()
    store.close()
    assert time.monotonic() - start < 8


def test_close_from_another_thread_during_calls_never_crashes(master) -> None:
    for _ in range(5):
        store = set_up(master.address, segment=8 * MIB)
        stop = threading.Event()
        odd: list[object] = []

        def work(store=store, stop=stop, odd=odd) -> None:
            while not stop.is_set():
                if store.put("c", b"x" * 10_000) > 0 or store.get("c") not in (b"", b"x" * 10_000):
                    odd.append("a code above 0, or wrong bytes")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert store.close() == 0
        stop.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert odd == []


EXIT = """
import threading
from mooncake.store import MooncakeDistributedStore as S
from mooncake.engine import TransferEngine as E
s = S(); assert s.setup('127.0.0.1', 'P2PHANDSHAKE', 1 << 22, 1 << 20, 'tcp', '', '{address}') == 0
e = E(); assert e.initialize('127.0.0.1', 'P2PHANDSHAKE', 'tcp', '') == 0
assert s.put('at exit', b'x') == 0
handle = s.get_buffer('at exit'); view = memoryview(handle)
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("del s, e", 0),
        ("s.close(); s.close()", 0),
        ("import sys; sys.exit(3)", 3),
        ("threading.Thread(target=lambda: [s.get('at exit') for _ in range(10**9)], daemon=True).start(); import time; time.sleep(0.2)", 0),
        ("s.self = s", 0),
    ],
    ids=["left open", "collected", "closed twice", "sys.exit", "a daemon thread in a call", "a cycle"],
)
def test_the_interpreter_ends_silently(master, ending, status) -> None:
    start = time.monotonic()
    done = run_python(EXIT.format(address=master.address, ending=ending))
    assert (done.returncode, done.stderr, done.stdout) == (status, "", "")
    assert time.monotonic() - start < 20


def test_a_forked_child_gets_codes_and_hurts_nobody(master) -> None:
    store = set_up(master.address, segment=8 * MIB)
    assert store.put("fork", b"parent") == 0
    child = os.fork()
    if child == 0:
        fine = store.put("child", b"x") < 0 and store.get("fork") == b"" and store.health_check() == 1 and store.close() == 0
        fine = fine and store.setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master.address) == 0
        fine = fine and store.get("fork") == b"parent" and store.close() == 0
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.get("fork") == b"parent"
    store.remove("fork", True)
    store.close()


def test_log_lines_have_one_form(capfd) -> None:
    MooncakeDistributedStore().put("k", b"x")
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} E \[store\] ", line)
