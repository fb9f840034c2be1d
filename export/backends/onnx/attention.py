"""Attention as ``GroupQueryAttention``, put in through transformers' attention interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .layers import CONTRIB
from .rotary import Rotation

ATTENTION = "mobilekit_group_query_attention"


@dataclass
class AttentionRun:
    """What one forward of the captured program hands to its attention calls."""

    past: list[Tensor]  # [k0, v0, k1, …], each (1, Hkv, P, Dh)
    last: Tensor  # (1,) int32, index of the last valid position
    total: Tensor  # () int32, P + S
    rotation: Rotation
    present: list[Tensor] = field(default_factory=list)


def group_query_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    run: AttentionRun,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Emit ``GroupQueryAttention``; query (1, H, S, Dh), key and value (1, Hkv, S, Dh).

    The operator appends to the cache, repeats no key head, masks causally by itself, and lets a
    host bind one buffer as past and present.
    """
    heads, length, head_dim = query.shape[1:]
    kv_heads = key.shape[1]
    past_key, past_value = run.past[2 * module.layer_idx : 2 * module.layer_idx + 2]
    inputs = [t.transpose(1, 2).reshape(1, length, -1) for t in (query, key, value)]
    inputs += [past_key, past_value, run.last, run.total]
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": float(scaling),
    }
    if (tables := run.rotation.take()) is not None:
        inputs += [tables.cos, tables.sin]
        attributes["do_rotary"] = 1
    if sliding_window is not None:
        attributes["local_window_size"] = int(sliding_window)
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    grown = [1, kv_heads, past_key.shape[2] + length, head_dim]
    output, *present = torch.onnx.ops.symbolic_multi_out(
        f"{CONTRIB}::GroupQueryAttention",
        inputs,
        attributes,
        dtypes=(query.dtype,) * 3,
        shapes=([1, length, heads * head_dim], grown, grown),
        version=1,
    )
    run.present.extend(present)
    return output.view(1, length, heads, head_dim), None
