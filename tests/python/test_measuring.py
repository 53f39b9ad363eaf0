"""Times that are measured again: how often, and what never is."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from moonpool.measuring import in_bounds


@pytest.mark.parametrize(("times", "repeats"), [([1.0], 0), ([3.0, 2.0], 1), ([3.0, 2.5, 1.0], 2)])
def test_a_time_out_of_bounds_is_measured_again_and_told(times: list[float], repeats: int) -> None:
    left = iter(times)
    with pytest.warns(UserWarning, match="it: .* s, at most 2 s is wanted; measured again") if repeats else nullcontext():
        assert in_bounds("it", lambda: next(left), 2.0) == times[-1]
    assert next(left, None) is None


@pytest.mark.filterwarnings("ignore:it")
def test_a_time_that_stays_out_of_bounds_fails_after_three_and_a_wrong_result_at_once() -> None:
    times = iter([3.0, 4.0, 5.0, 1.0])
    with pytest.raises(AssertionError, match="it: 3, 4, 5 s, at most 2 s is wanted"):
        in_bounds("it", lambda: next(times), 2.0)
    assert next(times) == 1.0
    asked = []

    def wrong() -> float:
        asked.append(1)
        raise AssertionError("a wrong byte")

    with pytest.raises(AssertionError, match="a wrong byte"):
        in_bounds("it", wrong, 2.0)
    assert len(asked) == 1
