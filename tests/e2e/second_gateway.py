"""A second gateway before the guide's four instances, with flags of its own, and what the tests ask of it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from guide import ADMIN_API_KEY, Guide
from moonpool.http_client import get, post
from moonpool.paths import MOONPOOL
from moonpool.ports import accepts, pick_free
from moonpool.processes import Component

Seen = TypeVar("Seen")
INSTANCES = ("prefill-1", "prefill-2", "decode-1", "decode-2")


def wait_until(what: str, seconds: float, look: Callable[[], Seen]) -> Seen:
    """The first true value of `look`, which is asked again and again."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds:.1f} s: {what}"
        time.sleep(0.01)
    return seen


class SecondGateway:
    """One gateway process; `url` as clients use it."""

    def __init__(self, guide: Guide, component: Component, url: str) -> None:
        self.guide, self.component, self.url = guide, component, url

    def status(self, address: str) -> dict[str, Any] | None:
        """What GET /instances says about one instance; None when it is not there."""
        listed = get(self.url + "/instances").json["instances"]
        return next((instance for instance in listed if instance["instance"] == address), None)

    def in_flight(self, names: Sequence[str] = INSTANCES) -> dict[str, int]:
        """Requests that each instance works on for this gateway."""
        return {name: (self.status(self.guide.local(name)) or {}).get("in_flight", 0) for name in names}

    def counter(self, name: str) -> int:
        """One of the counters of GET /status."""
        return get(self.url + "/status").json["counters"][name]

    def administer(self, action: str, **body: object) -> Any:
        answer = post(f"{self.url}/instances/{action}", body, {"X-API-Key": ADMIN_API_KEY}, timeout=120)
        assert answer.status == 200, answer.text
        return answer.json

    def signal(self, number: signal.Signals) -> None:
        self.component.signal_group(number)


@contextmanager
def second_gateway(guide: Guide, *flags: str, name: str = "gateway-2", config: Mapping[str, object] | None = None) -> Iterator[SecondGateway]:
    """All four instances unless a configuration says otherwise."""
    port = pick_free(1)[0]
    argv = [str(MOONPOOL), "gateway", "--model", guide.model, "--port", str(port), "--access-log", *flags]
    if config is None:
        argv += ["--prefill", guide.local("prefill-1"), guide.local("prefill-2"), "--decode", guide.local("decode-1"), guide.local("decode-2")]
    else:
        path = guide.folder / f"{name}.json"
        path.write_text(json.dumps(config))
        argv += ["--config", str(path)]
    component = Component(name, argv, guide.folder / f"{name}.log", {"ADMIN_API_KEY": ADMIN_API_KEY})
    guide.cluster.start_and_wait(component, lambda: accepts("127.0.0.1", port))
    try:
        yield SecondGateway(guide, component, f"http://127.0.0.1:{port}")
    finally:
        guide.supervisor.forget(component)
