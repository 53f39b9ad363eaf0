"""Leaving in order: what is still open at the interpreter's end is closed while it still runs, because threads of C++ must not outlive it."""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

from mooncake import _native


class _Closable(Protocol):
    def _leave(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()


def remember(thing: _Closable) -> None:
    """Has `thing._leave()` called at the interpreter's end, if it lives until then."""
    _open.add(thing)


def forget(thing: _Closable) -> None:
    _open.discard(thing)


@atexit.register
def _leave_all() -> None:
    # Daemon threads may still call; that they fail from now on is nobody's concern.
    _native.configure_log("store", "off")
    for thing in list(_open):
        thing._leave()
