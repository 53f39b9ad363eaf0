"""An instance that has vLLM's own event publisher and no engine, for test_8_kv_events.py: run by the Python that has vLLM.

A token is four characters of the prompt, a block 16 tokens. Every block of a prompt is stored and published; nothing is evicted until POST
/evict says so. POST /publish-unheard publishes an eviction of everything that only the replay has; POST /lose skips a number for good.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import msgspec
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch, ZmqEventPublisher

BLOCK = 16
MODEL = "m"


class Publisher(ZmqEventPublisher):
    """Binds the one address that it is given: several instances of a test share a machine and their port's number."""

    @staticmethod
    def _is_bind_endpoint(endpoint: str) -> bool:
        return True


class Instance:
    def __init__(self, host: str, events: int, replay: int) -> None:
        self.publisher = Publisher(0, f"tcp://{host}:{events}", f"tcp://{host}:{replay}", topic="kv-events")
        self.hashes: dict[tuple[str, tuple[int, ...]], int] = {}  # by adapter and all tokens up to the block's end
        self.next_hash = count(1 << 63)
        self.requests = 0

    def publish(self, *events: Any) -> None:
        self.publisher.publish(KVEventBatch(ts=time.time(), events=list(events)))

    def prefill(self, body: dict[str, Any]) -> list[int]:
        prompt = body["prompt"]
        tokens = prompt if isinstance(prompt, list) else [sum(map(ord, prompt[i : i + 4])) for i in range(0, len(prompt), 4)]
        adapter = "" if body["model"] == MODEL else body["model"]
        parent, new, start = None, [], 0
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            key = (adapter, tuple(tokens[:end]))
            if key in self.hashes:
                parent, start = self.hashes[key], end
                continue
            self.hashes[key] = next(self.next_hash)
            new.append(self.hashes[key])
        if new:
            told = tokens[start : start + BLOCK * len(new)]
            keys = [(adapter,)] * len(new) if adapter else None
            stored = BlockStored(new, parent, told, BLOCK, 1 if adapter else None, "GPU", adapter or None, keys, group_idx=0)
            self.publish(stored)
        return tokens

    def removal(self) -> BlockRemoved:
        removed = BlockRemoved(list(self.hashes.values()), "GPU", 0)
        self.hashes.clear()
        return removed

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/completions":
            self.requests += 1
            tokens = self.prefill(body)
            choice = {"index": 0, "text": "x", "finish_reason": "length"}
            if body.get("return_token_ids"):
                choice["prompt_token_ids"] = tokens
            return {"id": "1", "object": "text_completion", "model": body["model"], "choices": [choice]}
        if path == "/evict":
            self.publish(self.removal())
        elif path == "/clear":
            self.hashes.clear()
            self.publish(AllBlocksCleared())
        elif path == "/publish-unheard":
            batch = msgspec.msgpack.encode(KVEventBatch(ts=time.time(), events=[self.removal()]))
            self.publisher._buffer.append((next(self.publisher._seq_gen), batch))
        elif path == "/lose":
            next(self.publisher._seq_gen)
        return self.counts()

    def counts(self) -> dict[str, Any]:
        return {"requests": self.requests, "blocks": len(self.hashes)}


def serve(host: str, port: int, events: int, replay: int) -> None:
    instance = Instance(host, events, replay)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self.reply(models if self.path == "/v1/models" else instance.counts())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            self.reply(instance.answer(self.path, body))

        def log_message(self, *_: Any) -> None:
            pass

    ThreadingHTTPServer((host, port), Handler).serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
