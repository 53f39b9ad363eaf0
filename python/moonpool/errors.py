"""The one exception that reaches the user as a message instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can act on. `advice` says what to do; `detail` is shown as it is (usually a log's tail)."""

    def __init__(self, message: str, advice: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.detail = detail

    def render(self) -> str:
        parts = [f"error: {self.message}"]
        if self.detail:
            parts += ["  | " + line for line in self.detail.rstrip().splitlines()]
        if self.advice:
            parts.append(f"what to do: {self.advice}")
        return "\n".join(parts)
