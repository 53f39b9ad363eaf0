"""mooncake.mooncake_config: the configuration of one node, from a JSON file or from the environment.

A mistake raises ConfigError (a ValueError), whose text names the file with line and column, the field, and what would be right. A field that is
not known is a warning, so that files of newer releases still load.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from mooncake import _settings

DEFAULT_GLOBAL_SEGMENT_SIZE = 3_355_443_200  # 3.125 GiB
DEFAULT_LOCAL_BUFFER_SIZE = 1 << 30

# Fields of mooncake.json that engines read and this class has under another name, or not at all.
_ALIASES = {"enable_offload": "enable_ssd_offload", "rdma_devices": "device_name", "master_server_addr": "master_server_address"}
_READ_BY_ENGINES = ("mode", "metadata_backend", "transfer_timeout", "replica_num", "extra_config")

_ENVIRONMENT = {
    "local_hostname": "MOONCAKE_LOCAL_HOSTNAME",
    "metadata_server": "MOONCAKE_TE_META_DATA_SERVER",
    "global_segment_size": "MOONCAKE_GLOBAL_SEGMENT_SIZE",
    "local_buffer_size": "MOONCAKE_LOCAL_BUFFER_SIZE",
    "protocol": "MOONCAKE_PROTOCOL",
    "device_name": "MOONCAKE_DEVICE",
    "master_server_address": "MOONCAKE_MASTER",
    "enable_ssd_offload": "MOONCAKE_OFFLOAD_ENABLED",
    "ssd_offload_path": "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH",
    "tenant_id": "MOONCAKE_TENANT_ID",
}


class ConfigError(_settings.SettingError):
    """The configuration is wrong; the text says where, and what would be right."""


@dataclass
class MooncakeConfig:
    """What MooncakeDistributedStore.setup needs. Sizes in bytes."""

    local_hostname: str
    metadata_server: str
    global_segment_size: int
    local_buffer_size: int
    protocol: str
    device_name: str | None
    master_server_address: str
    enable_ssd_offload: bool = False
    ssd_offload_path: str = ""
    tenant_id: str = "default"
    enable_client_http_server: bool = False
    client_http_port: int = 9300

    @staticmethod
    def from_file(file_path: str) -> MooncakeConfig:
        """Reads a mooncake.json. local_hostname, metadata_server and master_server_address must be there; sizes may be texts ("3gb")."""
        try:
            with open(file_path, encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file_path}: not a text file in UTF-8 (byte {error.start})") from None
        return _from_json(str(file_path), text)

    @staticmethod
    def load_from_env() -> MooncakeConfig:
        """The file that MOONCAKE_CONFIG_PATH names; without it, MOONCAKE_MASTER and the other MOONCAKE_ variables."""
        path = os.environ.get("MOONCAKE_CONFIG_PATH")
        if path:
            return MooncakeConfig.from_file(path)
        if not os.environ.get("MOONCAKE_MASTER"):
            raise ConfigError(
                "neither MOONCAKE_CONFIG_PATH nor MOONCAKE_MASTER is set: name a mooncake.json in the first, or the master's 'host:port' in the second"
            )
        values: dict[str, Any] = {"local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE"}
        values.update((field, os.environ[name]) for field, name in _ENVIRONMENT.items() if name in os.environ)
        return _checked(values, lambda field: _ENVIRONMENT.get(field, field))


def _from_json(path: str, text: str) -> MooncakeConfig:
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _without_duplicates(path, text, pairs))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply: a configuration is one JSON object of plain values") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: a configuration is one JSON object, {{...}}; this is {_json_type(document)}")
    known = [field.name for field in fields(MooncakeConfig)]
    values = {}
    for name, value in document.items():
        field = _ALIASES.get(name, name)
        if field in known:
            values[field] = value
        elif name not in _READ_BY_ENGINES:
            hint = _settings.nearest(name, [*known, *_ALIASES, *_READ_BY_ENGINES])
            warnings.warn(f"{path}:{_line_of(text, name)}: unknown field '{name}' has no effect{hint}", stacklevel=4)
    written = {_ALIASES.get(name, name): name for name in document}
    for missing in ("local_hostname", "metadata_server", "master_server_address"):
        if missing not in values:
            raise ConfigError(f'{path}: the field \'{missing}\' is missing: add "{missing}": "{_EXAMPLES[missing]}"')
    return _checked(values, lambda field: f"{path}:{_line_of(text, written.get(field, field))}: {written.get(field, field)}")


_EXAMPLES = {
    "local_hostname": "192.168.0.137",
    "metadata_server": "etcd://192.168.0.137:2379",
    "master_server_address": "192.168.0.137:50001",
    "protocol": "tcp",
    "device_name": "",
    "ssd_offload_path": "/data/pool",
    "tenant_id": "default",
}


def _without_duplicates(path: str, text: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{path}:{_line_of(text, double, last=True)}: the field '{double}' is there twice: keep one of them")
    return seen


def _line_of(text: str, name: str, last: bool = False) -> int:
    found = list(re.finditer(re.escape(json.dumps(name)) + r"\s*:", text))
    return text.count("\n", 0, found[-1 if last else 0].start()) + 1 if found else 1


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _checked(values: dict[str, Any], where: Callable[[str], str]) -> MooncakeConfig:
    """`where` names a field as its writer knows it: the file, line and name, or the environment variable."""
    defaults = {
        "global_segment_size": DEFAULT_GLOBAL_SEGMENT_SIZE,
        "local_buffer_size": DEFAULT_LOCAL_BUFFER_SIZE,
        "protocol": "tcp",
        "device_name": "",
    }
    merged = {**defaults, **values}
    for field in fields(MooncakeConfig):
        if field.name not in merged:
            continue
        try:
            merged[field.name] = _CHECKS[field.name](merged[field.name], where(field.name))
        except _settings.SettingError as error:
            raise ConfigError(str(error)) from None
    return MooncakeConfig(**merged)


def _check_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: give a text; got {_json_type(value)}")
    return value.strip()


def _check_address(value: object, where: str) -> str:
    text = _check_text(value, where)
    for part in text.split(","):
        host, colon, port = part.strip().rpartition(":")
        bracketed = part.strip().endswith("]") or part.count(":") == 0
        if not part.strip() or (not bracketed and (not host or not 0 < (_settings.whole_number(port) or 0) < 65536)):
            raise ConfigError(f"{where}: give 'host' or 'host:port', such as '{_EXAMPLES['master_server_address']}'; got '{text}'")
    return text


def _check_metadata(value: object, where: str) -> str:
    text = _check_text(value, where)
    scheme, mark, _ = text.partition("://")
    if mark and scheme not in ("etcd", "redis", "http", "https"):
        hint = _settings.nearest(scheme, ("etcd", "redis", "http"))
        raise ConfigError(f"{where}: unknown kind '{scheme}'{hint}: give 'etcd://h:p', 'redis://h:p', 'http://h:p/metadata' or 'P2PHANDSHAKE'")
    return text


def _check_protocol(value: object, where: str) -> str:
    return _settings.check_protocol(_check_text(value, where), where)


def _check_devices(value: object, where: str) -> str:
    text = "" if value is None else _check_text(value, where)
    if any(not part.strip() for part in text.split(",")) and text:
        raise ConfigError(f"{where}: give device names separated by commas, such as 'erdma_0,erdma_1'; got '{text}'")
    return text


def _check_tenant(value: object, where: str) -> str:
    return "default" if value is None else _check_text(value, where) or "default"


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "local_hostname": _check_address,
    "metadata_server": _check_metadata,
    "global_segment_size": _settings.parse_size,
    "local_buffer_size": _settings.parse_size,
    "protocol": _check_protocol,
    "device_name": _check_devices,
    "master_server_address": _check_address,
    "enable_ssd_offload": _settings.parse_bool,
    "ssd_offload_path": _check_text,
    "tenant_id": _check_tenant,
    "enable_client_http_server": _settings.parse_bool,
    "client_http_port": _settings.parse_port,
}
