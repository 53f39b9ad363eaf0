"""Point 1: long prompts, back to back, twenty where the machine is quick enough; the pool delivers each to the decode instance, with the plain vLLM's text, in a tenth of the time."""

from __future__ import annotations

import pytest
from clusters import Reference
from moonpool import smoke

# A cold prompt takes 4 s on a CPU that is made for bfloat16, and four times as long on others; ./moonpool up --smoke asks all twenty.
MOST_SECONDS = 150.0

pytestmark = pytest.mark.cluster("acceptance")


def test_every_long_prompt_is_decoded_from_the_pool_with_the_plain_text_in_a_tenth_of_the_time(reference: Reference) -> None:
    cluster = reference.cluster()
    results = smoke.measure_all(cluster, ["decode-1"], MOST_SECONDS)
    report = "\n".join(f"prompt {index + 1}: {result}" for index, result in enumerate(results))
    assert [index + 1 for index, result in enumerate(results) if not result.held] == [], report
    print(report)
