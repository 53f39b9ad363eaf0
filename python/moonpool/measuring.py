"""Times in tests: one that is out of bounds is measured again, since the machine has neighbours; one that stays out of bounds is a failure.

Only a time is measured again, never a text, a byte or a result: `measure` checks those itself, and what it raises ends the test at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

TIME_REPEATS = 2


def in_bounds(what: str, measure: Callable[[], float], most: float, unit: str = "s", repeats: int = TIME_REPEATS) -> float:
    """The first of at most 1 + `repeats` measurements that is not above `most`; AssertionError with all of them when there is none.

    `measure` does the whole of it each time, on a fresh subject. Every repeat is told as a warning: pytest lists those of passed tests too.
    More than TIME_REPEATS is for what takes milliseconds, where a neighbour's time slice is as long as the measurement.
    """
    found: list[str] = []
    while (value := measure()) > most:
        found.append(f"{value:.3g}")
        if len(found) > repeats:
            raise AssertionError(f"{what}: {', '.join(found)} {unit}, at most {most:g} {unit} is wanted")
        warnings.warn(f"{what}: {value:.3g} {unit}, at most {most:g} {unit} is wanted; measured again", stacklevel=2)
    return value
