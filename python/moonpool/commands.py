"""Running other people's tools: output into a log file, a time limit always, the log's tail when it goes wrong.

all_end_by() sets one more limit, for all of them together: a whole run that has to be over by then tells how it went, instead of being killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from moonpool.errors import UserError
from moonpool.paths import LOGS, ROOT

TAIL_LINES = 25
POLL_SECONDS = 0.05
# What tidies up after a tool that was ended gets this long, also when the time for all is over.
LEAST_SECONDS = 1.0

_end = float("inf")  # of all tools, on the monotonic clock


@contextmanager
def all_end_by(end: float) -> Iterator[None]:
    """Within it no tool's time limit is later than `end` (time.monotonic), whatever its own; nested ones only shorten."""
    global _end
    before = _end
    _end = min(before, end)
    try:
        yield
    finally:
        _end = before


def within_all(timeout: float) -> float:
    """A tool's own time limit in seconds, or what is left for all if that is less."""
    return min(timeout, max(LEAST_SECONDS, _end - time.monotonic()))


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a file that may be large, still growing, or absent."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 200 * lines))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def log_path(name: str) -> Path:
    """The log of one step of the tooling, named after it."""
    LOGS.mkdir(parents=True, exist_ok=True)
    return LOGS / (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() + ".log")


def terminate_group(process: subprocess.Popen[bytes], grace_seconds: float = 5.0) -> None:
    """End a process started with start_new_session, and everything it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run_status(
    name: str,
    argv: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    append: bool = False,
) -> int:
    """Run a tool with its output in its log and return the exit status; 124 when its time ran out (it is then ended)."""
    timeout = within_all(timeout)
    with log_path(name).open("ab" if append else "wb") as log:
        log.write(f"$ {' '.join(str(word) for word in argv)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env=env, start_new_session=True
        )
        deadline = time.monotonic() + timeout
        try:
            while (status := process.poll()) is None:
                if time.monotonic() > deadline:
                    terminate_group(process)
                    log.write(f"\nstopped: not finished after {timeout:.0f} s\n".encode())
                    return 124
                time.sleep(POLL_SECONDS)
        except BaseException:
            terminate_group(process)
            raise
    return status


def run(
    name: str,
    argv: Sequence[str | Path],
    *,
    timeout: float,
    advice: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> None:
    """Run a tool that has to succeed; otherwise a UserError with the tail of its log."""
    timeout = within_all(timeout)
    status = run_status(name, argv, timeout=timeout, env=env, cwd=cwd)
    if status != 0:
        path = log_path(name)
        reason = f"did not finish within {timeout:.0f} s" if status == 124 else f"exit status {status}"
        raise UserError(f"{name}: {argv[0]}: {reason}", advice or f"the whole log is {path}", tail(path))


def output(argv: Sequence[str | Path], *, timeout: float = 30, env: Mapping[str, str] | None = None) -> str | None:
    """The standard output of a quick question to a tool; None when the tool is missing, fails or hangs."""
    try:
        answer = subprocess.run(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, timeout=within_all(timeout), env=env, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode("utf-8", "replace")
