"""Progress as a person wants it: one live line per piece of work on a terminal, plain lines in a log.

A Board owns the last lines of the terminal while any of its rows is unfinished. A ticker thread redraws them; every public
method may be called from any thread.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

REDRAW_SECONDS = 0.25
SPINNER = "|/-\\"


def format_seconds(seconds: float) -> str:
    """Short human time: 0.4 s, 12 s, 3 min 07 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


class Row:
    """One piece of work on a Board. As a context manager it finishes itself, well or badly, when the block ends."""

    def __init__(self, board: Board, name: str) -> None:
        self._board = board
        self.name = name
        self.note = ""
        self.started = time.monotonic()
        self.finished: float | None = None
        self.failed = False

    @property
    def elapsed(self) -> float:
        return (self.finished or time.monotonic()) - self.started

    def update(self, note: str) -> None:
        """Replace the remark behind the elapsed time; shown only on a terminal."""
        self.note = note

    def done(self, note: str = "") -> None:
        self._finish(note, failed=False)

    def fail(self, note: str = "") -> None:
        self._finish(note, failed=True)

    def _finish(self, note: str, failed: bool) -> None:
        if self.finished is None:
            self.note, self.failed, self.finished = note, failed, time.monotonic()
            self._board.row_finished(self)

    def __enter__(self) -> Row:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if kind is None:
            self.done(self.note)
        else:
            self.fail("failed" if issubclass(kind, Exception) else "interrupted")


class Board:
    """Rows of running work at the bottom of the terminal."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._lock = threading.RLock()
        self._rows: list[Row] = []
        self._drawn = 0
        self._ticker: threading.Thread | None = None

    def row(self, name: str) -> Row:
        """Add a row and start its clock."""
        row = Row(self, name)
        with self._lock:
            self._rows.append(row)
            if not self._live:
                self._print(f"  ..  {name}")
                return row
            self._draw()
            if self._ticker is None or not self._ticker.is_alive():
                self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
                self._ticker.start()
        return row

    def say(self, text: str = "") -> None:
        """Print ordinary text above the live rows."""
        with self._lock:
            self._erase()
            self._print(text)
            self._draw()

    def row_finished(self, row: Row) -> None:
        with self._lock:
            if not self._live:
                self._print(self._line(row))
            self._draw()
            if all(other.finished is not None for other in self._rows):
                self._rows.clear()
                self._drawn = 0

    def _tick(self) -> None:
        while True:
            time.sleep(REDRAW_SECONDS)
            with self._lock:
                if not self._rows:
                    self._ticker = None
                    return
                self._draw()

    def _erase(self) -> None:
        if self._live and self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._live:
            return
        self._erase()
        width = shutil.get_terminal_size((100, 24)).columns - 1
        for row in self._rows:
            self._stream.write(self._line(row)[:width] + "\n")
        self._drawn = len(self._rows)
        self._stream.flush()

    def _line(self, row: Row) -> str:
        if row.finished is None:
            mark = SPINNER[int(row.elapsed / REDRAW_SECONDS) % len(SPINNER)] + " "
        else:
            mark = "!!" if row.failed else "ok"
        return f"  {mark}  {row.name:<34} {format_seconds(row.elapsed):>10}  {row.note}".rstrip()

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


board = Board()
