"""What the setup calls read from arguments and environment, checked, with messages that say what would be right.

Nothing else in this package reads the environment. Raises SettingError only, whose text is one line for the log.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

_UNITS = {
    "": 1, "b": 1,
    "k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10,
    "m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20,
    "g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30,
    "t": 1 << 40, "tb": 1 << 40, "tib": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_LARGEST = 1 << 60

# Words that "protocol" may say. What this release cannot carry out is refused where the connection is made, with what to do.
_PROTOCOLS = ("tcp", "rdma", "cuda", "nvlink", "nvlink_intra", "efa", "cxl", "ascend", "barex", "hip", "nvmeof", "ubshmem")
_PATHS = ("local", "shm", "rdma", "tcp")

# The variables of RDMA: their values are checked where they are used, in C++ (src/transfer/rdma/settings.cpp), and with protocol "rdma" alone.
_RDMA_PREFIX = "MOONPOOL_RDMA_"
_RDMA_NAMES = ("MC_GID_INDEX", "MC_IB_PORT", "MC_IB_TC", "MC_MTU", "MC_RETRY_CNT")


class SettingError(ValueError):
    """A setting is wrong; the text names it and says what would be right."""


def nearest(word: str, known: Iterable[str]) -> str:
    """" (did you mean 'x'?)" for the closest known word, or an empty text."""
    import difflib  # only for mistakes: it would be a part of every start

    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def whole_number(text: str) -> int | None:
    """The number that these ASCII digits are, or None: str.isdigit() also takes digits that int() refuses, and int() those of other scripts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def parse_size(value: object, name: str) -> int:
    """Bytes from an integer or a text such as '16MB', '3gb', '1.5 GiB' (powers of 1024)."""
    right = f"{name}: give a number of bytes, or a text with a unit such as '4GB' or '512MB'"
    if isinstance(value, bool):
        raise SettingError(f"{right}; got {value!r}")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        unit = _UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise SettingError(f"{right}; got '{value}'")
        number = match.group(1)
        whole = whole_number(number)
        size = whole * unit if whole is not None else int(min(float(number) * unit, 2.0 * _LARGEST))
    else:
        try:
            size = operator.index(value)
        except TypeError:
            if not (isinstance(value, float) and value.is_integer()):
                raise SettingError(f"{right}; got {value!r}") from None
            size = int(value)
    if not 0 <= size <= _LARGEST:
        raise SettingError(f"{right}, from 0 to {_LARGEST}; got {value!r}")
    return size


def parse_bool(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off", ""):
            return False
    raise SettingError(f"{name}: give true or false; got {value!r}")


def parse_port(value: object, name: str) -> int:
    try:
        port = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        port = -1
    if isinstance(value, bool) or not 0 <= port <= 65535:
        raise SettingError(f"{name}: give a port from 0 to 65535; got {value!r}")
    return port


def check_protocol(value: str, name: str = "protocol") -> str:
    word = value.strip().lower()
    if word not in _PROTOCOLS:
        raise SettingError(f"{name}: unknown '{value}'{nearest(word, _PROTOCOLS)}; 'tcp' and 'rdma' are right in this release")
    return word


class Environment(NamedTuple):
    """The variables that both the store and the transfer engine read when they are set up."""

    cluster_token: str
    checksums: bool
    paths: str
    operation_timeout_ms: int
    setup_timeout_ms: int
    handover_wait_ms: int
    transfer_timeout_ms: int
    rdma: dict[str, str]

    @staticmethod
    def read() -> Environment:
        return Environment(
            cluster_token=_cluster_token(),
            checksums=parse_bool(os.environ.get("MOONPOOL_CHECKSUMS", "1"), "MOONPOOL_CHECKSUMS"),
            paths=_paths(),
            operation_timeout_ms=_milliseconds("MOONPOOL_OPERATION_TIMEOUT_MS", 10_000),
            setup_timeout_ms=_milliseconds("MOONPOOL_SETUP_TIMEOUT_MS", 10_000),
            handover_wait_ms=_milliseconds("MOONPOOL_HANDOVER_WAIT_MS", 500),
            transfer_timeout_ms=_milliseconds("MOONPOOL_TRANSFER_TIMEOUT_MS", 30_000),
            rdma={name: text for name, text in os.environ.items() if name.startswith(_RDMA_PREFIX) or name in _RDMA_NAMES},
        )


def log_level() -> str:
    return os.environ.get("MOONPOOL_LOG_LEVEL") or "warning"


def _paths() -> str:
    """Those that data may take; empty for all."""
    words = [word.strip().lower() for word in os.environ.get("MOONPOOL_PATHS", "").split(",") if word.strip()]
    for word in words:
        if word not in _PATHS:
            raise SettingError(f"MOONPOOL_PATHS: unknown '{word}'{nearest(word, _PATHS)}; give some of {', '.join(_PATHS)} with commas between")
    return ",".join(dict.fromkeys(words))


def _milliseconds(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None or not text.strip():
        return default
    number = whole_number(text.strip())
    if number is None or number > 86_400_000:
        raise SettingError(f"{name}: give a whole number of milliseconds, at most a day; got '{text}'")
    return number


def _cluster_token() -> str:
    """The token itself never appears in a message."""
    token = os.environ.get("MOONPOOL_CLUSTER_TOKEN", "")
    path = os.environ.get("MOONPOOL_CLUSTER_TOKEN_FILE", "")
    if token or not path:
        return token
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise SettingError(f"MOONPOOL_CLUSTER_TOKEN_FILE: {path} cannot be read ({reason}): give a file with the cluster's token") from None
    if not token:
        raise SettingError(f"MOONPOOL_CLUSTER_TOKEN_FILE: {path} is empty: give a file with the cluster's token")
    return token
