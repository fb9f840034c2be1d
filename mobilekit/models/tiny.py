"""Tiny instances of every class that a family covers: what tests and the support table try.

Each is a real class with random weights and a configuration that has what its family does beyond a
plain decoder: windows shorter than a test's text, soft caps, several rotary bases, biases.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from .families import Family

TINY: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


_DENSE: dict[str, Any] = {**TINY, "intermediate_size": 96, "tie_word_embeddings": False}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 4.0],
    "partial_rotary_factor": 0.25,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA: dict[str, Any] = {
    **_DENSE,
    "num_hidden_layers": 3,
    "sliding_window": 5,
    "query_pre_attn_scalar": 24,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 3.0,
}
_MAMBA2 = {
    "vocab_size": 256,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "head_dim": 16,
    "state_size": 8,
    "n_groups": 2,
    "chunk_size": 4,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_SPARSE: dict[str, Any] = {  # a dense layer, then two with experts, where a class has it
    **_DENSE,
    "num_hidden_layers": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_GROUPED: dict[str, Any] = {
    **_SPARSE,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}
_LATENT: dict[str, Any] = {
    **_GROUPED,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 4,
    "head_dim": 8,  # the rotated part, which is what these classes mean by it
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
# name -> (class without "ForCausalLM", settings): each has what its family does beyond a plain
# decoder; what follows a hyphen is a variant
TINY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_DENSE, "rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", {**_DENSE, "sliding_window": None}),
    "mistral-window": ("Mistral", {**_DENSE, "sliding_window": 5}),
    "qwen2": ("Qwen2", {**_DENSE, "rope_parameters": _YARN}),
    "qwen2-window": (
        "Qwen2",
        {**_DENSE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", _DENSE),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **TINY,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [0],
            "intermediate_size": 96,
        },
    ),
    "phi3": ("Phi3", {**_DENSE, "sliding_window": 5, "partial_rotary_factor": 0.5}),
    "phi3-longrope": (
        "Phi3",
        {**_DENSE, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 64},
    ),
    "olmoe": (
        "Olmoe",
        {
            **_DENSE,
            "intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "clip_qkv": 1.5,
        },
    ),
    "mixtral": (
        "Mixtral",
        {**_DENSE, "intermediate_size": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **_SPARSE,
            "num_experts": 8,
            "shared_expert_intermediate_size": 48,
            "mlp_only_layers": [0],
        },
    ),
    "granite_moe": (
        "GraniteMoe",
        {
            **_DENSE,
            "intermediate_size": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
    ),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        {**_SPARSE, "moe_num_experts": 8, "moe_num_shared_experts": 1},
    ),
    "glm4_moe": (
        "Glm4Moe",
        {**_GROUPED, "use_qk_norm": True, "attention_bias": True, "num_mtp_layers": 0},
    ),
    "deepseek_v2": ("DeepseekV2", {**_LATENT, "topk_method": "group_limited_greedy"}),
    "deepseek_v3": ("DeepseekV3", {**_LATENT, "num_mtp_layers": 0}),
    "gpt_oss": (
        "GptOss",
        {
            **_DENSE,
            "hidden_size": 32,
            "intermediate_size": 16,
            "head_dim": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "rope_parameters": _YARN,
        },
    ),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 4.0}),
    "gemma3": ("Gemma3", {**_GEMMA, "sliding_window_pattern": 3}),
    "mamba2": ("Mamba2", _MAMBA2),
}


def make_tiny(name: str, **changes: Any) -> nn.Module:
    """Return the tiny model of a name in ``TINY_MODELS``, float32, the same every time.

    Args:
        name: The name.
        changes: Settings of its config that are to be others.
    """
    import torch
    import transformers

    prefix, settings = TINY_MODELS[name]
    cls = getattr(transformers, f"{prefix}ForCausalLM")
    torch.manual_seed(3)
    model: nn.Module = cls(cls.config_class(**{**settings, **changes})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # as they are made, norms are 1, biases 0 and scores next to nothing
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5))
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in stored:  # corrections of a router
                buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.3)
    return model


def tiny_family(name: str) -> Family:
    """Return the family of a name in ``TINY_MODELS``; no model is made."""
    from .families import family_for_class

    return family_for_class(f"{TINY_MODELS[name][0]}ForCausalLM")


def write_byte_tokenizer(folder: Path) -> None:
    """Write the files of a byte-level tokenizer whose vocabulary is the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=alphabet[0]
    )
    wrapped.save_pretrained(folder)
