"""Draws what gateway_trace --json wrote: P90 of the time to first token over the load, a line per policy, a panel per mode.

Runs in the environment that has matplotlib (./moonpool bench makes it): gateway_trace_plot.py RESULTS.jsonl PLOT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {
    "round_robin": "#d1495b", "random": "#cbc5b1", "least_load": "#edae49", "power_of_two": "#8d99ae",
    "session_affinity": "#6b705c", "prefix_aware": "#66a182", "pool_aware": "#1b6ca8",
}  # fmt: skip
TITLES = {"pool": "with a shared pool", "local": "without a pool"}


def main(source: Path, target: Path) -> None:
    records: list[dict[str, Any]] = [json.loads(line) for line in source.read_text().splitlines()]
    modes = list(dict.fromkeys(record["mode"] for record in records))
    figure, panels = plt.subplots(1, len(modes), figsize=(5.2 * len(modes), 4), squeeze=False, sharey=True)
    for axes, mode in zip(panels[0], modes, strict=True):
        chosen = [record for record in records if record["mode"] == mode]
        for policy in dict.fromkeys(record["policy"] for record in chosen):
            line = sorted((record["load"], record["ttft_p90_s"]) for record in chosen if record["policy"] == policy)
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, lw=1.4, color=COLOURS.get(policy, "#555555"), label=policy)
            if policy == "round_robin":
                axes.plot([load for load, _ in line], [0.7 * time for _, time in line], ls="--", lw=1, color=COLOURS[policy], label="30% below round_robin")
        axes.set_title(f"{TITLES.get(mode, mode)}: {chosen[0]['prefill']} prefill, {chosen[0]['decode']} decode", fontsize=9)
        axes.set_yscale("log")
        axes.set_xlabel("load (times the recorded rate)", fontsize=8)
        axes.grid(lw=0.3, which="both")
    panels[0][0].set_ylabel("P90 time to first token, s", fontsize=8)
    panels[0][0].legend(fontsize=7)
    figure.suptitle("The gateway's policies on the trace, simulated instances", x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
