"""The disaggregated-serving demo proxy in shape, to compare the gateway with: FastAPI and aiohttp, one process, one session a hop.

Prefill gets the request with max_tokens 1, then decode gets it as it came, and its answer is passed on piece by piece.

    python gateway_demo_proxy.py PORT PREFILL_HOST:PORT DECODE_HOST:PORT
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

PIECE_BYTES = 1024
TIME_LIMIT = aiohttp.ClientTimeout(total=6 * 3600)

app = FastAPI()
prefill_turns = itertools.cycle([sys.argv[2]])
decode_turns = itertools.cycle([sys.argv[3]])


async def pieces_of_answer(instance: str, path: str, body: dict, streamed: bool) -> AsyncIterator[bytes]:
    async with (
        aiohttp.ClientSession(timeout=TIME_LIMIT) as session,
        session.post(f"http://{instance}{path}", json=body) as response,
    ):
        response.raise_for_status()
        if streamed:
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                yield piece
        else:
            yield await response.read()


async def completion(request: Request, path: str) -> Response:
    body = await request.json()
    prefill_body = {**body, "max_tokens": 1, "stream": False}
    if "max_completion_tokens" in body:
        prefill_body["max_completion_tokens"] = 1
    try:
        async for _ in pieces_of_answer(next(prefill_turns), path, prefill_body, streamed=False):
            pass
    except aiohttp.ClientError as error:
        return JSONResponse({"error": {"message": str(error)}}, status_code=502)
    streamed = bool(body.get("stream"))
    answer = pieces_of_answer(next(decode_turns), path, body, streamed)
    return StreamingResponse(answer, media_type="text/event-stream" if streamed else "application/json")


@app.post("/v1/completions")
async def completions(request: Request) -> Response:
    return await completion(request, "/v1/completions")


@app.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    return await completion(request, "/v1/chat/completions")


@app.get("/health")
async def health() -> dict:
    return {}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False, timeout_keep_alive=75)
