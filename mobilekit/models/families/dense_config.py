"""Heads and channels as a family offers them; what a config can say where all layers are alike."""

from __future__ import annotations

from typing import Any

from mobilekit.models.modules.uneven import shared_config

from .dense import attentions, channels, key_value_heads, query_heads


def set_heads(model: Any, _count: int) -> None:
    """Write the numbers of heads into the config, if all layers have the same and it can say so.

    A class may refuse a config (a hidden size that is no multiple of the heads, scaling factors
    for another head size): it then stays as it was, true of the model before, and a checkpoint is
    rebuilt from its plans.
    """
    found = attentions(model)
    shapes = {(one.count, one.kv_count, one.head_dim) for one in found}
    if len(shapes) != 1 or not all(one.is_stock for one in found):
        return
    heads, kv_heads, dim = shapes.pop()
    values = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    is_said = all(getattr(model.config, name) == value for name, value in values.items())
    if is_said or _write(model.config, {**values, "head_dim": dim}):
        for one in found:
            one.module.config = shared_config(one.module)  # which now says what the layer has


def set_channels(model: Any, count: int) -> None:
    """Write the number of MLP channels that all layers have into the config."""
    _write(model.config, {"intermediate_size": count})


def _write(config: Any, values: dict[str, int]) -> bool:
    """Set values that the class makes a config of; return whether it does."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        type(config).from_dict({**config.to_dict(), **values})
    except (StrictDataclassError, ValueError):
        return False
    for name, value in values.items():
        setattr(config, name, value)
    return True


HEADS = {"head": query_heads, "kv_head": key_value_heads}
DENSE_UNITS = {**HEADS, "channel": channels}
SET_HEADS = {"head": set_heads, "kv_head": set_heads}
SET_DENSE = {**SET_HEADS, "channel": set_channels}
