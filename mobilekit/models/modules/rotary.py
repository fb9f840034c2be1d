"""Rotary embeddings of a program: frequencies that hold for its whole context, in one order."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mobilekit.core.errors import UsageError


def rotary_limit(config: Any) -> int | None:
    """Return up to which length a model's rotary frequencies stay as they are; ``None``: always."""
    settings = getattr(config, "rope_parameters", None) or {}
    by_kind = [v for v in settings.values() if isinstance(v, dict)] or [settings]
    limits = [_limit(one, config) for one in by_kind]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(settings: dict[str, Any], config: Any) -> int | None:
    if settings.get("rope_type") == "longrope":
        return int(settings["original_max_position_embeddings"])
    is_dynamic = settings.get("rope_type") == "dynamic"
    return int(config.max_position_embeddings) if is_dynamic else None


def prepare_rotary_(decoder: Any, context_length: int) -> None:
    """Make the rotary embedding of a private copy the same at every position of the context.

    Two types of scaling choose other frequencies once a sequence passes a length of the config's.
    Up to that length they are constants, which is what is captured; keys that were cached before
    the switch would be wrong after it, in transformers as well.

    Args:
        decoder: The base model, which owns ``rotary_emb``.
        context_length: Positions of the program.

    Raises:
        UsageError: If the context is longer than the frequencies hold for.
    """
    rotary = decoder.rotary_emb
    limit = rotary_limit(rotary.config)
    if limit is not None and context_length > limit:
        raise UsageError(
            f"context length {context_length} was asked for, but this model changes its rotary "
            f"frequencies after {limit} positions, which a cache cannot follow",
            hint=f"Choose a --context-length of at most {limit}.",
        )
    if isinstance(rotary.rope_type, dict):
        for kind in rotary.layer_types:
            rotary.rope_type[kind] = "default"
            setattr(rotary, f"{kind}_inv_freq", getattr(rotary, f"{kind}_original_inv_freq"))
        decoder.rotary_emb = OrderedRotary(rotary)
    else:
        rotary.rope_type = "default"  # the type says only when to compute frequencies anew
        rotary.inv_freq = rotary.original_inv_freq


class OrderedRotary(nn.Module):
    """A rotary embedding with frequencies for each kind of layer, computed in a fixed order.

    transformers asks for the kinds in the order of a set of strings, which differs between
    processes, and with it the captured graph would.

    Args:
        rotary: ``forward(x, position_ids, kind)`` → (cos, sin), and ``layer_types``.
    """

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary = rotary
        self._ready: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str) -> tuple[Tensor, Tensor]:
        """Return cos and sin of a kind, each (1, S, Dh); every call asks once for each kind."""
        if not self._ready:
            self._ready = {k: self.rotary(x, position_ids, k) for k in self.rotary.layer_types}
        return self._ready.pop(layer_type)
