#!/usr/bin/env python3
"""A paged KV cache saved to the pool by one process and loaded by another, bit for bit, with the rates of both.

    python3 examples/paged_kv_cache.py                  # on the first GPU, or on the CPU where torch sees none
    python3 examples/paged_kv_cache.py --device cuda:1 --blocks 1024 --layers 32 --heads 8

This process starts a master on a free port of 127.0.0.1 and lends the pool its memory; the saver and the loader are processes of their own, as
prefill and decode instances are, and lend nothing. The cache is laid out as vLLM's FlashAttention backend has it: for each layer a tensor
[2 (K, V), blocks, tokens of a block, KV heads, head size]. A block is one object whose pieces are its K and its V of every layer: small stretches
of device memory, which the store gathers and spreads by their addresses. The loader puts them into other blocks than those they came from.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BATCH_BLOCKS = 64  # in one call
START_SECONDS = 30.0
MIB = 1 << 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0], allow_abbrev=False)
    parser.add_argument("--device", default="", help="'cuda', 'cuda:1', 'cpu'; default: the first GPU, or the CPU")
    parser.add_argument("--layers", type=int, default=28, help="of the model (28, as Qwen2.5-7B)")
    parser.add_argument("--heads", type=int, default=4, help="KV heads (4)")
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=16, help="tokens of a block (16)")
    parser.add_argument("--blocks", type=int, default=128, help="blocks of the prompt (128)")
    parser.add_argument("--dtype", default="bfloat16", help="any of torch's (bfloat16)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all blocks are saved and loaded, under other keys each time (3)")
    parser.add_argument("--role", choices=("save", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--master", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.layers, options.heads, options.head_size, options.block_size, options.blocks, options.rounds) < 1:
        parser.error("every number has to be at least 1")
    return options


# ------------------------------------------------------------------------------------------------------------------------- the cache


class Cache:
    """The paged KV cache of one instance. Holds twice as many blocks as the prompt has, so that a block rarely has its own number."""

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        import torch

        self.torch, self.device, self.prompt_blocks = torch, torch.device(device), options.blocks
        self.shape = (2, 2 * options.blocks, options.block_size, options.heads, options.head_size)
        dtype = getattr(torch, options.dtype)
        self.layers = [torch.zeros(self.shape, dtype=dtype, device=self.device) for _ in range(options.layers)]
        self.piece_bytes = self.layers[0][0, 0].numel() * self.layers[0].element_size()

    @property
    def block_bytes(self) -> int:
        return 2 * len(self.layers) * self.piece_bytes

    def pieces(self, block: int) -> list[int]:
        """The addresses of a block's K and V in every layer."""
        half = self.shape[1] * self.piece_bytes
        return [layer.data_ptr() + side * half + block * self.piece_bytes for layer in self.layers for side in (0, 1)]

    def contents(self, layer: int, round_number: int) -> object:
        """What the prompt's blocks hold in one layer: random bits, the same in every process."""
        generator = self.torch.Generator(device="cpu").manual_seed(1000 * round_number + layer)
        count = 2 * self.prompt_blocks * self.piece_bytes
        bits = self.torch.randint(0, 256, (count,), dtype=self.torch.uint8, generator=generator)
        return bits.view(2, self.prompt_blocks, self.piece_bytes).to(self.device)

    def _bytes(self, layer: int) -> object:
        return self.layers[layer].view(self.torch.uint8).view(2, self.shape[1], self.piece_bytes)

    def fill(self, table: list[int], round_number: int) -> None:
        """Writes the prompt into the blocks of the table, with kernels on torch's current stream, as a forward pass would."""
        blocks = self.torch.tensor(table, device=self.device)
        for layer in range(len(self.layers)):
            self._bytes(layer)[:, blocks] = self.contents(layer, round_number)

    def clear(self) -> None:
        for layer in self.layers:
            layer.zero_()

    def wrong_layers(self, table: list[int], round_number: int) -> list[int]:
        """Layers in which a bit of the prompt's blocks is not what fill() wrote."""
        blocks = self.torch.tensor(table, device=self.device)
        pairs = ((layer, self._bytes(layer)[:, blocks]) for layer in range(len(self.layers)))
        return [layer for layer, found in pairs if not self.torch.equal(found, self.contents(layer, round_number))]


# ------------------------------------------------------------------------------------------------------------- the saver and the loader


def open_store(master: str, lend: int = 0) -> object:
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    if store.setup("127.0.0.1", "P2PHANDSHAKE", lend, 64 * MIB, "tcp", "", master) != 0:
        sys.exit("this process could not join the pool: the line above says why")
    return store


def batches(table: list[int], round_number: int) -> Iterator[tuple[list[str], list[int]]]:
    """Keys of the prompt's blocks, and the blocks of this instance that hold them."""
    for start in range(0, len(table), BATCH_BLOCKS):
        numbers = range(start, min(start + BATCH_BLOCKS, len(table)))
        yield [f"example@round:{round_number}@block:{number}" for number in numbers], [table[number] for number in numbers]


def run_role(options: argparse.Namespace) -> int:
    cache = Cache(options, options.device)
    store = open_store(options.master)
    for layer in cache.layers:
        # As an engine does at its start; memory that is not registered works as well.
        if store.register_buffer(layer.data_ptr(), layer.numel() * layer.element_size()) != 0:
            sys.exit("a layer could not be registered: the line above says why")
    saving = options.role == "save"
    table = list(range(options.blocks)) if saving else list(reversed(range(options.blocks, 2 * options.blocks)))
    sizes = [cache.piece_bytes] * (2 * len(cache.layers))
    total = cache.block_bytes * options.blocks
    for round_number in range(options.rounds):
        cache.fill(table, round_number) if saving else cache.clear()
        if cache.device.type == "cuda":
            # For the clock alone: the store's work comes after what is queued on torch's default stream anyway.
            cache.torch.cuda.synchronize()
        started = time.perf_counter()
        for keys, blocks in batches(table, round_number):
            addresses = [cache.pieces(block) for block in blocks]
            if saving:
                wrong = [code for code in store.batch_put_from_multi_buffers(keys, addresses, [sizes] * len(keys)) if code != 0]
            else:
                answers = store.batch_get_into_multi_buffers(keys, addresses, [sizes] * len(keys))
                wrong = [code for code in answers if code != cache.block_bytes]
            if wrong:
                sys.exit(f"{options.role}: {len(wrong)} of {len(keys)} blocks failed, the first with {wrong[0]}")
        seconds = time.perf_counter() - started
        remark = ""
        if not saving:
            layers = cache.wrong_layers(table, round_number)
            if layers:
                sys.exit(f"round {round_number}: wrong bits in layers {layers}")
            remark = ", every bit right"
        print(f"{'saved' if saving else 'loaded'}: {total / 1e6:.1f} MB in {seconds * 1e3:.1f} ms, {total / seconds / 1e9:.2f} GB/s{remark}", flush=True)
    store.close()
    return 0


# --------------------------------------------------------------------------------------------------------------- the pool around them


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running_master() -> Iterator[str]:
    """A master of this run's own; gives its address."""
    beside = Path(sys.executable).with_name("mooncake_master")
    program = str(beside) if beside.is_file() else shutil.which("mooncake_master")
    if program is None:
        sys.exit("mooncake_master was not found: install the moonpool wheel for this python3")
    port, admin = free_port(), free_port()
    argv = [program, f"--port={port}", "--rpc_address=127.0.0.1", f"--metrics_port={admin}", "--metrics_host=127.0.0.1"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env={"MOONPOOL_LOG_LEVEL": "warning", **os.environ})
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the master did not start: its output is above")
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def main() -> int:
    options = parse()
    if options.role:
        return run_role(options)
    try:
        import torch
    except ImportError:
        sys.exit("this example needs torch: install it for this python3")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    block_bytes = 2 * options.layers * options.block_size * options.heads * options.head_size * getattr(torch, options.dtype).itemsize
    arguments = [word for name in ("layers", "heads", "head-size", "block-size", "blocks", "dtype", "rounds")
                 for word in (f"--{name}", str(getattr(options, name.replace("-", "_"))))]  # fmt: skip
    with running_master() as master:
        lender = open_store(master, lend=block_bytes * options.blocks * options.rounds + 64 * MIB)
        print(f"{options.blocks} blocks of {options.block_size} tokens, {2 * options.layers} pieces each, on {device}", flush=True)
        for role in ("save", "load"):
            argv = [sys.executable, __file__, "--role", role, "--master", master, "--device", device, *arguments]
            if (status := subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode) != 0:
                return status
        lender.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
