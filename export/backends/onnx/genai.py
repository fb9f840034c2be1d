"""``genai_config.json``: what onnxruntime-genai, the stock runner, reads beside the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..base import ExportSpec
from .write import MODEL_FILE

if TYPE_CHECKING:
    from mobilekit.models.families import Program

CONFIG_FILE = "genai_config.json"
# model types that the runner has a decoder of its own name for; "decoder" is its generic one
_KNOWN_TYPES = ("qwen3",)


def obstacle(program: Program) -> str | None:
    """Return what keeps the stock runner from running a program; ``None`` where nothing does."""
    if program.is_recurrent:
        return "it runs key-value caches only"
    if len(set(_caches(program))) > 1:
        return "it knows one number of key-value heads for all layers"
    return None


def _caches(program: Program) -> list[tuple[int | str, int | str]]:
    """Return (key-value heads, head size) of each cache of keys."""
    keys = [s for s in program.inputs if s.name.startswith("past_") and s.name.endswith(".key")]
    return [(spec.shape[1], spec.shape[3]) for spec in keys]


def genai_config(config: Any, spec: ExportSpec, program: Program) -> dict[str, Any]:
    """Return the runner's configuration.

    The runner makes a cache for each layer that it is told of, so layers count that have one.

    Args:
        config: The ``transformers`` config of the model.
        spec: Context length and special tokens.
        program: The program, without an ``obstacle``.
    """
    caches = _caches(program)
    kv_heads, head_size = caches[0]
    model_type = config.model_type if config.model_type in _KNOWN_TYPES else "decoder"
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_FILE,
        "head_size": head_size,
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
        "num_hidden_layers": len(caches),
        "num_key_value_heads": kv_heads,
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
