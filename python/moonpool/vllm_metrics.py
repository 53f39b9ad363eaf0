"""What an instance says about itself on /metrics: Prometheus text, summed over its engines, and the differences that we need."""

from __future__ import annotations

from dataclasses import dataclass

from moonpool import http_client

_COUNTERS = {
    "vllm:external_prefix_cache_queries_total": "external_queries",
    "vllm:external_prefix_cache_hits_total": "external_hits",
    "vllm:prefix_cache_hits_total": "local_hits",
    "vllm:time_to_first_token_seconds_sum": "first_token_seconds",
    "vllm:time_to_first_token_seconds_count": "first_tokens",
}


@dataclass(frozen=True)
class VllmCounters:
    """Counters since the instance started. Cache counters count tokens."""

    external_queries: float = 0.0
    external_hits: float = 0.0
    local_hits: float = 0.0
    first_token_seconds: float = 0.0
    first_tokens: float = 0.0

    def __sub__(self, earlier: VllmCounters) -> VllmCounters:
        return VllmCounters(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))

    @property
    def external_hit_rate(self) -> float:
        """Tokens that the pool delivered, of those asked for; 0 when the pool was not asked."""
        return self.external_hits / self.external_queries if self.external_queries else 0.0

    @property
    def time_to_first_token(self) -> float:
        """Mean seconds from a request's arrival at the instance to its first token; 0 without a request."""
        return self.first_token_seconds / self.first_tokens if self.first_tokens else 0.0


def parse_samples(text: str) -> dict[str, float]:
    """Prometheus text format as name -> value, samples that differ only in labels added up."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name_and_labels, _, value = line.rpartition(" ")
        name = name_and_labels.partition("{")[0]
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return sums


def parse_counters(text: str) -> VllmCounters:
    samples = parse_samples(text)
    return VllmCounters(**{field: samples.get(name, 0.0) for name, field in _COUNTERS.items()})


def read_counters(base_url: str) -> VllmCounters:
    """The counters of the instance at base_url now."""
    return parse_counters(http_client.get(base_url + "/metrics").text)
