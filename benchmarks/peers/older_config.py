"""The ``config.json`` of transformers 5, spelled as transformers 4 reads it.

Transformers 4 does not refuse ``rope_parameters``: it ignores them, and the model is silently
another one. Whoever takes a checkpoint to such a tool has to write the older keys.
"""

from __future__ import annotations

from typing import Any


def older_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with ``rope_theta``, ``rope_scaling`` and ``torch_dtype``."""
    older = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")}
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
