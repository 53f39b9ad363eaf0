"""Finding free TCP ports, and saying clearly when a wanted one is taken."""

from __future__ import annotations

import socket

from moonpool.errors import UserError

# Below the kernel's ephemeral range (32768-), so that no outgoing connection takes a port between our choice and its use.
FIRST, LAST = 20000, 32000
_next_candidate = FIRST


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def pick_free(count: int) -> list[int]:
    """Free ports, never the same twice within one process."""
    global _next_candidate
    found: list[int] = []
    for _ in range(LAST - FIRST):
        port = _next_candidate
        _next_candidate = FIRST if port + 1 >= LAST else port + 1
        if is_free(port, "0.0.0.0"):
            found.append(port)
            if len(found) == count:
                return found
    raise UserError(f"no {count} free ports between {FIRST} and {LAST}", "end some of the servers that run on this machine")


def require_free(port: int, purpose: str, option: str) -> None:
    """Fail at once, before anything is built or started for it."""
    if not is_free(port):
        raise UserError(
            f"port {port}, wanted for {purpose}, is in use on 127.0.0.1",
            f"choose another with {option}, or end what listens there (ss -ltnp 'sport = :{port}' shows it)",
        )


def accepts(host: str, port: int, timeout: float = 1.0) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True
