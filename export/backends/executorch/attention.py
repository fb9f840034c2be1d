"""Attention and cache by ExecuTorch's LLM kernels, or inside the delegate where they cannot.

The stock attention repeats every key and value for its group of query heads, reads the whole
cache however little of it is filled, and copies it for every write. ``llama::update_cache``
writes in place, and ``llama::custom_sdpa`` reads what is filled. It knows no soft cap; such
layers stack the query heads of a group along the length instead, inside the delegate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# registers the operators llama::update_cache and llama::custom_sdpa
import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mobilekit.models.modules.decoders import ResidentDecoder

NAME = "mobilekit_executorch"
_MASKED = 1e4  # exp(-1e4) is exactly 0 in float32


@dataclass(frozen=True)
class _Call:
    """What the attention must know of the call that it is part of.

    Attributes:
        start: Position of the first new token, a plain or a symbolic integer.
        causal: Ids of the attention modules that see everything up to their own position.
    """

    start: Any = None
    causal: set[int] = field(default_factory=set)


_call: ContextVar[_Call] = ContextVar("call")


class InPlaceDecoder(ResidentDecoder):
    """The same program, its caches laid out and written as the LLM kernels want them.

    Args:
        program: The decoder to take over, unquantized; it shares its model.
    """

    def __init__(self, program: ResidentDecoder) -> None:
        # the wrapped program's own probes decide; must run while it is still as it was
        causal = _causal_attentions(program)
        super().__init__(program.model, program.context_length)
        self._causal = causal
        for name, buffer in self.named_buffers(recurse=False):
            # (1, T, H, Dh); in half precision the kernel takes ten times as long
            setattr(self, name, buffer.transpose(1, 2).contiguous().float())
        _attend_by(self, NAME)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Return the last position's logits, shape (1, 1, V)."""
        start: Any = input_pos[0].item()
        torch._check_is_size(start)  # type: ignore[no-untyped-call]
        torch._check(  # type: ignore[no-untyped-call]
            start + tokens.shape[1] <= self.context_length
        )
        with _in_call(_Call(start, self._causal)):
            return super().forward(tokens, input_pos).float()

    def write(
        self, layer: int, positions: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new states, each (1, H, S, Dh); return its cache, (1, T, H, Dh) each."""
        keys, values = getattr(self, f"k{layer}"), getattr(self, f"v{layer}")
        start = _call.get().start
        torch.ops.llama.update_cache(key.transpose(1, 2).float(), keys, start)
        torch.ops.llama.update_cache(value.transpose(1, 2).float(), values, start)
        return keys, values


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output, shape (1, S, H, Dh), and no weights.

    Args:
        module: The attention module.
        query: Shape (1, H, S, Dh).
        key: The layer's cache of keys, shape (1, T, Hk, Dh), float32, H a multiple of Hk.
        value: The layer's cache of values, shape (1, T, Hk, Dh), float32.
        attention_mask: Shape (1, 1, S, T), bool, true where visible; each row has one true.
        scaling: Factor of the scores.
        softcap: Bound of the scores, softly enforced, or ``None``.
        unused: What else the models hand to an attention (dropout, sliding window); the mask
            says all of it for a program in eval mode.
    """
    call, dtype = _call.get(), query.dtype
    query = query.float()
    if softcap is not None:
        bias = _additive(attention_mask)
        output = grouped_attention(query, key, value, bias, scaling, softcap)
        return output.to(dtype), None
    if id(module) in call.causal:
        start, mask = call.start, None
    else:
        start, mask = 0, _additive(attention_mask)[0, 0]
    output = torch.ops.llama.custom_sdpa(
        query.transpose(1, 2), key, value, start, mask, 0.0, mask is None, scaling
    )
    return output.to(dtype), None


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, softcap: float
) -> Tensor:
    """Return the output, shape (1, S, H, Dh), by products over the whole cache.

    The query heads of a group are stacked along the length: the same product as with repeated
    keys, without the copies, and in operators that XNNPACK takes.
    """
    _, heads, length, head_dim = query.shape
    slots, groups = key.shape[1:3]
    per_group = heads // groups
    stacked = (query * scaling).contiguous().view(groups, per_group * length, head_dim)
    scores = torch.bmm(stacked, key[0].permute(1, 2, 0))
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(groups, per_group, length, slots) + bias
    weights = torch.softmax(scores, dim=-1).view(groups, per_group * length, slots)
    output = torch.bmm(weights, value[0].transpose(0, 1))
    # two steps: in one, torch.export guards on the stride of the merged heads
    output = output.view(groups, per_group, length, head_dim).flatten(0, 1)[None]
    return output.transpose(1, 2)


def _additive(mask: Tensor) -> Tensor:
    return (mask.to(torch.float32) - 1.0) * _MASKED


@contextmanager
def _in_call(call: _Call) -> Iterator[None]:
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def _attend_by(module: nn.Module, name: str) -> None:
    """Make every ``transformers`` model inside ``module`` attend by ``name``; it owns configs."""
    for child in module.modules():
        config: Any = getattr(child, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


def _causal_attentions(program: ResidentDecoder) -> set[int]:
    """Return the ids of the attention modules that mask nothing but what comes later.

    Found by looking at the masks of a call at the very end of the context, where a window or a
    chunk that is shorter than the context shows.
    """
    _attend_by(program, _PROBE)
    length = min(2, program.context_length - 1)
    with torch.no_grad(), _in_call(_Call()):
        program(
            torch.zeros(1, length, dtype=torch.long),
            torch.tensor([program.context_length - length]),
        )
        return _call.get().causal


def _probe(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    length, slots = mask.shape[-2:]
    causal = torch.ones(length, slots, dtype=torch.bool).tril(slots - length)
    if torch.equal(mask[0, 0], causal):
        _call.get().causal.add(id(module))
    return query.transpose(1, 2), None


_PROBE = f"{NAME}_probe"
AttentionInterface.register(NAME, attention)
AttentionInterface.register(_PROBE, _probe)
