"""mooncake.json and the environment: what is right loads, what is wrong is named with file, line and field."""

from __future__ import annotations

import json

import pytest
from mooncake.mooncake_config import MooncakeConfig

RIGHT = {
    "local_hostname": "192.168.0.137",
    "metadata_server": "etcd://192.168.0.137:2379",
    "protocol": "tcp",
    "device_name": "",
    "master_server_address": "192.168.0.137:50001",
}


def write(folder, fields: dict | str):
    path = folder / "mooncake.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields, indent=2))
    return str(path)


def test_the_guides_file_loads(tmp_path) -> None:
    config = MooncakeConfig.from_file(write(tmp_path, RIGHT))
    assert config == MooncakeConfig(
        local_hostname="192.168.0.137", metadata_server="etcd://192.168.0.137:2379", global_segment_size=3355443200,
        local_buffer_size=1 << 30, protocol="tcp", device_name="", master_server_address="192.168.0.137:50001",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [("3gb", 3 << 30), ("16MB", 16 << 20), ("1.5 GiB", 3 << 29), ("4096", 4096), ("100 b", 100), (0, 0), (7, 7), (1e9, 10**9), ("2TB", 2 << 40)],
)
def test_sizes_are_numbers_or_texts_with_a_unit(tmp_path, text, size) -> None:
    assert MooncakeConfig.from_file(write(tmp_path, {**RIGHT, "global_segment_size": text})).global_segment_size == size


# A field wrong in turn: what the message must say beside the file's name.
WRONG = [
    ({"global_segment_size": "50%"}, [":7:", "global_segment_size", "4GB", "50%"]),
    ({"global_segment_size": -5}, [":7:", "global_segment_size", "-5"]),
    ({"global_segment_size": "3 zb"}, [":7:", "3 zb"]),
    ({"global_segment_size": None}, [":7:", "global_segment_size"]),
    ({"global_segment_size": 1.5}, [":7:", "1.5"]),
    ({"local_buffer_size": [1]}, [":7:", "local_buffer_size"]),
    ({"local_buffer_size": True}, [":7:", "local_buffer_size"]),
    ({"protocol": "rmda"}, [":4:", "protocol", "did you mean 'rdma'?"]),
    ({"protocol": 7}, [":4:", "protocol", "a number"]),
    ({"device_name": "a,,b"}, [":5:", "device_name", "erdma_0,erdma_1"]),
    ({"device_name": 5}, [":5:", "device_name"]),
    ({"local_hostname": 5}, [":2:", "local_hostname", "a text"]),
    ({"local_hostname": "host:port"}, [":2:", "local_hostname", "host:port"]),
    ({"local_hostname": ""}, [":2:", "local_hostname"]),
    ({"metadata_server": "ectd://h:1"}, [":3:", "metadata_server", "did you mean 'etcd'?"]),
    ({"metadata_server": {}}, [":3:", "metadata_server", "an object"]),
    ({"master_server_address": "h:99999"}, [":6:", "master_server_address", "192.168.0.137:50001"]),
    ({"master_server_address": None}, [":6:", "master_server_address", "null"]),
    ({"enable_ssd_offload": "perhaps"}, [":7:", "enable_ssd_offload", "true or false"]),
    ({"enable_offload": "perhaps"}, [":7:", "enable_offload"]),
    ({"client_http_port": 123456}, [":7:", "client_http_port", "65535"]),
    ({"tenant_id": 4}, [":7:", "tenant_id"]),
    ({"ssd_offload_path": 4}, [":7:", "ssd_offload_path"]),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[json.dumps(change) for change, _ in WRONG])
def test_a_wrong_field_is_named_with_file_line_and_what_is_right(tmp_path, change, said) -> None:
    path = write(tmp_path, {**RIGHT, **change})
    with pytest.raises(ValueError) as caught:
        MooncakeConfig.from_file(path)
    message = str(caught.value)
    assert message.startswith(path) and "\n" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize("field", ["local_hostname", "metadata_server", "master_server_address"])
def test_a_missing_field_is_named_with_an_example(tmp_path, field) -> None:
    path = write(tmp_path, {name: value for name, value in RIGHT.items() if name != field})
    with pytest.raises(ValueError, match=f"'{field}' is missing: add \"{field}\""):
        MooncakeConfig.from_file(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n  "protocol": "tcp",\n}', ":3:"),
        ('{"a": 1', ":1:"),
        ("", ":1:1:"),
        ("[1, 2]", "a list"),
        ('"text"', "a text"),
        ('{\n"protocol": "tcp",\n"protocol": "tcp"}', ":3: the field 'protocol' is there twice"),
        ("[" * 100_000, "nested"),
    ],
)
def test_a_file_that_is_no_json_object_is_named_with_line_and_column(tmp_path, text, said) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        MooncakeConfig.from_file(path)
    assert str(caught.value).startswith(path) and said in str(caught.value)


def test_a_file_that_is_no_text_or_not_there(tmp_path) -> None:
    path = tmp_path / "mooncake.json"
    with pytest.raises(FileNotFoundError):
        MooncakeConfig.from_file(str(path))
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="UTF-8"):
        MooncakeConfig.from_file(str(path))


def test_an_unknown_field_is_a_warning_with_the_nearest_name(tmp_path) -> None:
    with pytest.warns(UserWarning, match=r":7: unknown field 'device_nam' has no effect \(did you mean 'device_name'\?\)"):
        MooncakeConfig.from_file(write(tmp_path, {**RIGHT, "device_nam": "x"}))
    MooncakeConfig.from_file(write(tmp_path, {**RIGHT, "mode": "embedded", "enable_offload": False}))


ENVIRONMENT = {
    "MOONCAKE_MASTER": "10.0.0.1:50051",
    "MOONCAKE_LOCAL_HOSTNAME": "10.0.0.2",
    "MOONCAKE_TE_META_DATA_SERVER": "redis://10.0.0.3:6379",
    "MOONCAKE_GLOBAL_SEGMENT_SIZE": "3gb",
    "MOONCAKE_LOCAL_BUFFER_SIZE": "512mb",
    "MOONCAKE_PROTOCOL": "tcp",
    "MOONCAKE_DEVICE": "eth0",
    "MOONCAKE_OFFLOAD_ENABLED": "1",
    "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": "/data",
    "MOONCAKE_TENANT_ID": "t",
}


def test_the_environment_gives_every_field(monkeypatch) -> None:
    monkeypatch.delenv("MOONCAKE_CONFIG_PATH", raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert MooncakeConfig.load_from_env() == MooncakeConfig(
        local_hostname="10.0.0.2", metadata_server="redis://10.0.0.3:6379", global_segment_size=3 << 30, local_buffer_size=512 << 20,
        protocol="tcp", device_name="eth0", master_server_address="10.0.0.1:50051", enable_ssd_offload=True, ssd_offload_path="/data",
        tenant_id="t",
    )  # fmt: skip


def test_the_environment_without_master_says_what_to_set(monkeypatch) -> None:
    for name in ("MOONCAKE_CONFIG_PATH", "MOONCAKE_MASTER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MOONCAKE_CONFIG_PATH.*MOONCAKE_MASTER"):
        MooncakeConfig.load_from_env()


def test_a_wrong_variable_is_named(monkeypatch) -> None:
    monkeypatch.delenv("MOONCAKE_CONFIG_PATH", raising=False)
    monkeypatch.setenv("MOONCAKE_MASTER", "h:1")
    monkeypatch.setenv("MOONCAKE_GLOBAL_SEGMENT_SIZE", "lots")
    with pytest.raises(ValueError, match="MOONCAKE_GLOBAL_SEGMENT_SIZE.*lots"):
        MooncakeConfig.load_from_env()


def test_the_config_path_wins_over_the_other_variables(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MOONCAKE_MASTER", "h:1")
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", write(tmp_path, RIGHT))
    assert MooncakeConfig.load_from_env().master_server_address == "192.168.0.137:50001"
