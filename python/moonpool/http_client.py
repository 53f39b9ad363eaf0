"""A small HTTP client for JSON services: every call has a deadline, and a refusal of the server is an answer, not an exception."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Proxies of the environment are for the outside; these calls stay on the machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


def request(method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 10.0) -> Answer:
    """One request. Raises OSError only when there is no answer (refused, reset, timed out)."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    call = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})}, method=method)
    try:
        with _opener.open(call, timeout=timeout) as response:
            return Answer(response.status, response.read())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return Answer(refusal.code, refusal.read())


def get(url: str, timeout: float = 10.0) -> Answer:
    return request("GET", url, timeout=timeout)


def post(url: str, body: Any, headers: Mapping[str, str] | None = None, timeout: float = 600.0) -> Answer:
    return request("POST", url, body, headers, timeout)


def is_healthy(url: str, timeout: float = 2.0) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return get(url, timeout).status == 200
    except (OSError, ValueError):
        return False


def stream_events(url: str, body: Any, timeout: float = 600.0) -> Iterator[str]:
    """The data of each server-sent event of a streamed completion, "[DONE]" included. `timeout` is for each wait, not for the whole."""
    call = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
    with _opener.open(call, timeout=timeout) as response:
        for line in response:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()
