"""mooncake.async_store: the store for asyncio. Every method `name` of the store has a twin `async_name`, which runs it on a worker thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from mooncake.store import MooncakeDistributedStore


class MooncakeDistributedStoreAsync(MooncakeDistributedStore):
    """MooncakeDistributedStore with an awaitable async_<method> for each method; cancelling one does not stop the call behind it."""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if not name.startswith("async_") or not hasattr(MooncakeDistributedStore, name[6:]):
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
        return functools.partial(asyncio.to_thread, getattr(self, name[6:]))
