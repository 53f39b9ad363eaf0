"""A paged KV cache on a GPU, its blocks by address, and random bits to fill it with."""

from __future__ import annotations

import torch


class PagedCache:
    """[2 (K, V), blocks, bytes of a piece] for each layer, as bytes; a block's pieces are its K and V in every layer."""

    def __init__(self, device: str | torch.device, layers: int = 4, blocks: int = 16, piece_bytes: int = 4096) -> None:
        self.device, self.blocks, self.piece_bytes = torch.device(device), blocks, piece_bytes
        self.layers = [torch.zeros(2, blocks, piece_bytes, dtype=torch.uint8, device=self.device) for _ in range(layers)]

    @property
    def sizes(self) -> list[int]:
        return [self.piece_bytes] * (2 * len(self.layers))

    @property
    def block_bytes(self) -> int:
        return sum(self.sizes)

    def addresses(self, block: int) -> list[int]:
        return [layer[side, block].data_ptr() for layer in self.layers for side in (0, 1)]

    def randomize(self) -> None:
        for layer in self.layers:
            layer.random_(0, 256)

    def block(self, number: int) -> torch.Tensor:
        """A block's bytes in the order of its pieces."""
        return torch.stack([layer[side, number] for layer in self.layers for side in (0, 1)])


def put(store: object, keys: list[str], cache: PagedCache, blocks: list[int]) -> list[int]:
    return store.batch_put_from_multi_buffers(keys, [cache.addresses(block) for block in blocks], [cache.sizes] * len(keys))


def get(store: object, keys: list[str], cache: PagedCache, blocks: list[int]) -> list[int]:
    return store.batch_get_into_multi_buffers(keys, [cache.addresses(block) for block in blocks], [cache.sizes] * len(keys))


def busy(device: torch.device, milliseconds: int = 200) -> None:
    """Work on the current stream that takes about that long (a GPU of 1 to 2 GHz counts the cycles)."""
    with torch.cuda.device(device):
        torch.cuda._sleep(milliseconds * 1_500_000)
