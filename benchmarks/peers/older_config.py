"""The ``config.json`` of transformers 5, spelled as transformers 4 reads it.

Transformers 4 does not refuse ``rope_parameters`` or ``num_local_experts``: it ignores them, and
the model is another one. Whoever takes a checkpoint to such a tool has to write the older keys.
"""

from __future__ import annotations

from typing import Any


def candidate_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that 5.0.0rc1 reads too: it has the rotary keys, not the experts'."""
    if config.get("model_type") != "qwen3_moe":  # the others have called it the same ever since
        return config
    return {**config, "num_experts": config["num_local_experts"]}


def older_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with version 4's rotary keys, experts and dtype."""
    older = candidate_spelling(config)
    older = {k: v for k, v in older.items() if k not in ("rope_parameters", "dtype")}
    older["torch_dtype"] = config.get("dtype", "float32")
    rope = config.get("rope_parameters")
    if rope is None:
        return older
    if "full_attention" in rope:  # one rotary base a kind of layer
        older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    scaling = dict(rope)
    older["rope_theta"] = scaling.pop("rope_theta")
    if "partial_rotary_factor" in scaling:
        older["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    if scaling["rope_type"] == "longrope":
        scaling = {"type": scaling.pop("rope_type"), **scaling}
        # its reader allows no other keys and takes this one from the configuration itself
        scaling.pop("original_max_position_embeddings", None)
    older["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    return older
