"""``genai_config.json``: what onnxruntime-genai, the stock runner, reads beside the graph."""

from __future__ import annotations

from typing import Any

from ..base import ExportSpec
from .write import MODEL_FILE

CONFIG_FILE = "genai_config.json"
# model types that the runner has a decoder of its own name for; "decoder" is its generic one
_KNOWN_TYPES = ("qwen3",)


def genai_config(config: Any, spec: ExportSpec) -> dict[str, Any]:
    """Return the runner's configuration.

    Args:
        config: The ``transformers`` config of the model.
        spec: Context length and special tokens.
    """
    model_type = config.model_type if config.model_type in _KNOWN_TYPES else "decoder"
    head_dim = getattr(config, "head_dim", None)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": head_dim or config.hidden_size // config.num_attention_heads,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
    }
    return {
        "model": {
            **_special_tokens(spec),
            "context_length": spec.context_length,
            "decoder": decoder,
            "type": model_type,
            "vocab_size": config.vocab_size,
        },
        "search": _search(spec.context_length),
    }


def _special_tokens(spec: ExportSpec) -> dict[str, Any]:
    """Return the ids that are known; the runner pads with the end of text for want of better."""
    ends = list(spec.eos_token_ids)
    padding = spec.pad_token_id if spec.pad_token_id is not None else (ends or [0])[0]
    tokens: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": padding}
    if spec.bos_token_id is not None:
        tokens["bos_token_id"] = spec.bos_token_id
    return tokens


def _search(context_length: int) -> dict[str, Any]:
    """Return greedy search; past and present share one buffer, as the graph's attention can."""
    return {
        "diversity_penalty": 0.0,
        "do_sample": False,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": context_length,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }
