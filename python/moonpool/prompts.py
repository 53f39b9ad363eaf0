"""Long prompts for the acceptance run: different from the first token on, the same on every machine, about 3,000 tokens each.

A prompt is a short invented chronicle told again and again, broken off in the middle. The model goes on with it word for word, so
the greedy choice is never a close call (where it is, vLLM's own text changes between a cold run and a warm one, since the order of
additions differs), and what it goes on with can only be known from the KV cache of the whole prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_PLACES = "Bergen Trieste Halifax Lisbon Lagos Dover Antwerp Geneva Boston Cairo Delhi Paris Oslo".split()
_PEOPLE = "Anna Boris Clara David Elena Frank Greta Henry Irene James Karen Louis Maria Peter Susan Victor".split()
_GOODS = "copper barley lanterns rope glass paper wool tea salt amber cork tiles honey ink silver bread".split()
_VERBS = "counted weighed sold stored repaired painted borrowed guarded shipped examined returned collected".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
SENTENCES = 8
TOLD = 36

# A few tokens past 24 blocks of 128. vLLM recomputes a started block with any pool, up to 0.3 s of it on two cores, which would
# hide what the pool itself costs.
PROMPT_TOKENS = 3090


def _chronicle(rng: random.Random) -> list[str]:
    people, goods = rng.sample(_PEOPLE, SENTENCES), rng.sample(_GOODS, SENTENCES)
    return [
        f"{person} of {rng.choice(_PLACES)} {rng.choice(_VERBS)} {rng.randint(2, 9)} boxes of {thing} on {rng.choice(_DAYS)}."
        for person, thing in zip(people, goods, strict=True)
    ]


def endless_prompt(index: int, told: int = TOLD) -> str:
    """The chronicle with this number, told so often that a prompt can be cut from it; neighbours share no prefix."""
    rng = random.Random(f"moonpool-{index}")
    story = " ".join(_chronicle(rng))
    return " ".join([f"{rng.choice(_PEOPLE)}'s chronicle number {index + 1}."] + [story] * told)


def fit_prompt(text: str, count_tokens: Callable[[str], int], most: int = PROMPT_TOKENS) -> str:
    """The longest run of whole words from the text's start that has at most this many tokens."""
    words = text.split(" ")
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(" ".join(words[:middle])) <= most:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])
