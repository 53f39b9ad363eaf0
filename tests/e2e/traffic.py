"""A stream of requests through a gateway while something is killed, and what became of each of them."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from clusters import completion_body, short_prompt
from moonpool.http_client import post, stream_events

REQUEST_SECONDS = 120.0


@dataclass(frozen=True)
class Fate:
    """One request's end. `error` is what the client saw instead of a complete answer; empty when it was complete."""

    prompt: int
    streamed: bool
    first_byte: bool
    text: str
    error: str
    seconds: float
    ended: float

    @property
    def complete(self) -> bool:
        return not self.error


def _plain_request(url: str, model: str, prompt: int) -> tuple[bool, str, str]:
    try:
        answer = post(url + "/v1/completions", completion_body(model, short_prompt(prompt)), timeout=REQUEST_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        return False, "", f"no answer: {error!r}"
    if answer.status != 200:
        return False, "", f"{answer.status}: {answer.text[:300]}"
    return True, answer.json["choices"][0]["text"], ""


def _streamed_request(url: str, model: str, prompt: int) -> tuple[bool, str, str]:
    """A stream is complete only with its [DONE]; an end without one has to come with an error event or a broken connection."""
    text, first_byte = "", False
    try:
        for event in stream_events(url + "/v1/completions", completion_body(model, short_prompt(prompt), stream=True), REQUEST_SECONDS):
            if event == "[DONE]":
                return first_byte, text, ""
            first_byte = True
            content = json.loads(event)
            if "error" in content:
                return first_byte, text, f"error event: {content['error']}"
            text += content["choices"][0]["text"]
    except (OSError, http.client.HTTPException) as error:
        return first_byte, text, f"broken: {error!r}"
    return first_byte, text, "SILENT END"


class Traffic:
    """A few clients that send one short prompt after the other, streamed and not in turn, until told to stop."""

    def __init__(self, url: str, model: str, prompts: int, clients: int = 3) -> None:
        self._url, self._model, self._prompts = url, model, prompts
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._fates: list[Fate] = []
        self._threads = [threading.Thread(target=self._run, args=(number,), name=f"client-{number}") for number in range(clients)]

    def _run(self, number: int) -> None:
        turn = number
        while not self._stopping.is_set():
            prompt, streamed = turn % self._prompts, turn % 2 == 0
            started = time.monotonic()
            send = _streamed_request if streamed else _plain_request
            first_byte, text, error = send(self._url, self._model, prompt)
            ended = time.monotonic()
            with self._lock:
                self._fates.append(Fate(prompt, streamed, first_byte, text, error, ended - started, ended))
            turn += 1
            if error:
                self._stopping.wait(0.2)

    @property
    def fates(self) -> list[Fate]:
        with self._lock:
            return list(self._fates)

    def wait_for(self, count: int, seconds: float) -> None:
        """Wait until that many requests have ended since now."""
        target = len(self.fates) + count
        deadline = time.monotonic() + seconds
        while len(self.fates) < target:
            assert time.monotonic() < deadline, f"only {len(self.fates)} of {target} requests ended within {seconds:.0f} s"
            time.sleep(0.05)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(REQUEST_SECONDS)


def check_fates(fates: Sequence[Fate], expected: Sequence[str]) -> None:
    """The contract: no wrong text, no silent end; without a first byte at the client, a complete answer from another instance."""
    assert fates
    for fate in fates:
        assert fate.error != "SILENT END", fate
        if fate.complete:
            assert fate.text == expected[fate.prompt], fate
        else:
            assert fate.streamed and fate.first_byte, f"it had not sent its first byte and should have been answered: {fate}"
            assert expected[fate.prompt].startswith(fate.text), fate
