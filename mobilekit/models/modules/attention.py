"""What a program must know of a decoder's attention: its windows, its key-value heads, its form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mobilekit.core.errors import UnsupportedModelError

SOFTCAP = "mobilekit_softcap"  # name of `softcap_attention` in transformers' attention interface
MASKED = 1e4  # representable in fp16; exp(-1e4) is exactly 0 in float32


def attention_windows(model: nn.Module) -> dict[str, int | None]:
    """Return the window of each kind of layer that the model has; ``None`` is full attention.

    A model has one mask for all layers (then there is one kind here, whatever its name), or takes
    a mask for each kind under transformers' name of it. A window of W sees the last W positions.

    Raises:
        UnsupportedModelError: If a kind is neither, or tokens attend to later ones.
    """
    config: Any = model.config
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} with use_bidirectional_attention does not generate text",
            hint="Export a model whose tokens attend to earlier ones only.",
        )
    # settings that the class does not declare are remarks of another model, which it ignores
    window = config.sliding_window if hasattr(type(config), "sliding_window") else None
    if not hasattr(type(config), "layer_types"):
        return {"full_attention" if window is None else "sliding_attention": window}
    known = {"full_attention": None, "sliding_attention": window}
    if unknown := set(config.layer_types) - set(known):
        raise UnsupportedModelError(
            f"{type(model).__name__} has layers of {', '.join(sorted(unknown))}, which cannot be "
            "exported",
            hint="Export a model whose layers have full or sliding attention.",
        )
    return {kind: known[kind] for kind in sorted(set(config.layer_types))}


def key_value_heads(attention: Any) -> int:
    """Return how many key-value heads an attention module has, read off its projections."""
    if hasattr(attention, "k_proj"):
        rows: int = attention.k_proj.out_features
    else:  # fused: the queries' rows are what the output projection takes
        rows = (attention.qkv_proj.out_features - attention.o_proj.in_features) // 2
    return rows // int(attention.head_dim)


def choose_attention_(model: nn.Module) -> None:
    """Let a program's private copy attend in a form that takes boolean and additive masks."""
    config: Any = model.config
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    config._attn_implementation = SOFTCAP if capped else "sdpa"


def softcap_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output, (B, S, H, Dh), of scores bent to ±``softcap``.

    Args:
        module: The attention module; not used.
        query: Shape (B, H, S, Dh).
        key: Shape (B, Hk, T, Dh), H a multiple of Hk.
        value: Shape (B, Hk, T, Dh).
        attention_mask: Shape (1, 1, S, T), bool (true where visible) or additive.
        scaling: Factor of the scores.
        softcap: Bound c of the scores, which become c · tanh(score / c); no bound where ``None``.
    """
    length, groups = query.shape[2], key.shape[1]
    # the query heads of a group are stacked along the length, so no key is repeated; each view
    # splits or merges two dimensions, since torch.export guards on the strides of larger steps
    stacked = torch.unflatten(query * scaling, 1, (groups, -1)).flatten(2, 3)
    scores = stacked @ key.transpose(2, 3)  # (B, Hk, H / Hk · S, T)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    bias = attention_mask
    if bias.dtype == torch.bool:
        bias = (bias.to(scores.dtype) - 1.0) * MASKED
    scores = torch.unflatten(scores, 2, (-1, length)).flatten(1, 2) + bias  # (B, H, S, T)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.unflatten(weights, 1, (groups, -1)).flatten(2, 3) @ value
    return torch.unflatten(output, 2, (-1, length)).flatten(1, 2).transpose(1, 2), None


AttentionInterface.register(SOFTCAP, softcap_attention)
