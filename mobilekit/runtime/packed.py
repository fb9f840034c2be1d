"""Many prompts in one forward pass of a transformers decoder, without a single padding token.

The new tokens of all prompts stand one after the other in one sequence of batch 1, so every
matrix product sees real tokens only; each token carries its own position. Attention alone has to
know the prompts apart: it is run for each of them on the keys along its path through the prefix
tree, which are those of its own new tokens and of what it shares with prompts before it, in the
same pass or in an earlier one. Only last positions reach the head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .prompts import Step

PACKED = "mobilekit_packed"  # name of `packed_attention` in transformers' attention interface
_FUSED, _EAGER = "sdpa", "eager"


@dataclass(frozen=True)
class Part:
    """What one prompt is in a packed pass.

    Attributes:
        begin: Where its new tokens begin in the packed sequence.
        start: Position of the first of them in the prompt.
        length: Tokens of the whole prompt.
        path: Where the keys of all its positions stand, (length,): indices into the keys that
            are held from earlier passes, followed by those of this one. A slice where they stand
            side by side.
    """

    begin: int
    start: int
    length: int
    path: Tensor | slice

    @property
    def end(self) -> int:
        """Where its new tokens end in the packed sequence."""
        return self.begin + self.length - self.start


@dataclass
class Pass:
    """The prompts of one pass, and what each layer remembers for the next.

    Attributes:
        parts: The prompts.
        implementation: Which attention runs for each of them, "sdpa" or "eager".
        kept: Where the keys stand that the next pass goes on from, (L,); ``None`` if from none.
        held: Keys and values of each attention module that this pass goes on from; replaced by
            the kept ones as the pass runs.
        masks: Additive masks, by prompt and window: most layers have the same ones.
    """

    parts: list[Part]
    implementation: str
    kept: Tensor | None
    held: dict[nn.Module, tuple[Tensor, Tensor]]
    masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def joined(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return held and new keys and values, each (1, Hk, L + N, Dh), and keep what is next."""
        if (before := self.held.pop(module, None)) is not None:
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        if self.kept is not None:
            self.held[module] = (key[:, :, self.kept], value[:, :, self.kept])
        return key, value

    def mask(self, number: int, window: int | None, like: Tensor) -> Tensor | None:
        """Return what prompt ``number`` sees, additive (1, 1, S, T) in the dtype of ``like``.

        ``None`` where the fused kernel's own causal form says the same.
        """
        part = self.parts[number]
        is_cut = window is not None and part.length > window
        if self.implementation == _FUSED and part.start == 0 and not is_cut:
            return None
        known = (number, window)
        if known not in self.masks:
            queries = torch.arange(part.start, part.length, device=like.device)[:, None]
            keys = torch.arange(part.length, device=like.device)
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self.masks[known] = mask.masked_fill_(hidden, torch.finfo(like.dtype).min)[None, None]
        return self.masks[known]


def is_packable(model: Any) -> bool:
    """Tell whether all that mixes tokens in a model is attention that we can take over.

    Its class must hand everything that attention depends on to the attention interface as
    arguments, windows included; that is what transformers calls support of FlashAttention.
    """
    return bool(
        getattr(model, "_supports_flash_attn", False)
        and getattr(model, "_supports_attention_backend", False)
        and getattr(model.config, "_attn_implementation", None) in (_FUSED, _EAGER)
        and not getattr(model.config, "use_bidirectional_attention", False)
    )


def packed_passes(
    model: Any, steps: Sequence[Step], *, max_tokens: int, max_prompts: int
) -> Iterator[tuple[Sequence[Step], Tensor]]:
    """Run prompts in passes of about ``max_tokens`` new tokens.

    Args:
        model: A decoder for which :func:`is_packable` holds.
        steps: The prompts, as :func:`plan_steps` orders them for a cache that can go back.
        max_tokens: New tokens in one pass; a longer prompt has one for itself.
        max_prompts: Prompts in one pass, hence rows of logits.

    Yields:
        The steps of a pass, and their logits (B, V), on the model's device.
    """
    held: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    device, implementation = model.device, model.config._attn_implementation
    passes = list(_split(steps, max_tokens, max_prompts))
    for number, group in enumerate(passes):
        parts, last = _parts(group, device)
        following = passes[number + 1][0].start if number + 1 < len(passes) else 0
        kept = last[:following] if following else None
        packed = Pass(parts, implementation, kept, held)
        with _attending(model):
            output = model(
                input_ids=_row([s.tokens[s.start :] for s in group], device),
                position_ids=_row([range(s.start, len(s.tokens)) for s in group], device),
                logits_to_keep=torch.tensor([part.end - 1 for part in parts], device=device),
                use_cache=False,
                packed=packed,
            )
        yield group, output.logits[0]


def _split(steps: Sequence[Step], max_tokens: int, max_prompts: int) -> Iterator[list[Step]]:
    group: list[Step] = []
    tokens = 0
    for step in steps:
        new = len(step.tokens) - step.start
        if group and (tokens + new > max_tokens or len(group) == max_prompts):
            yield group
            group, tokens = [], 0
        group.append(step)
        tokens += new
    if group:
        yield group


def _parts(group: Sequence[Step], device: torch.device) -> tuple[list[Part], Tensor]:
    """Return the prompts of a pass, and the path of the last one, (S,)."""
    held = group[0].start  # the pass before kept as much as its first prompt needs
    path, begin, parts = torch.arange(held), 0, []
    for step in group:
        length = len(step.tokens)
        end = begin + length - step.start
        path = torch.cat([path[: step.start], torch.arange(held + begin, held + end)])
        where = path.to(device) if step.start else slice(held + begin, held + end)
        parts.append(Part(begin, step.start, length, where))
        begin = end
    return parts, path.to(device)


def _row(pieces: Sequence[Any], device: torch.device) -> Tensor:
    joined = torch.cat([torch.as_tensor(piece, dtype=torch.int64) for piece in pieces])
    return joined[None].to(device)


@contextmanager
def _attending(model: Any) -> Iterator[None]:
    """Let the model attend by :func:`packed_attention` for one pass."""
    before = model.config._attn_implementation
    model.config._attn_implementation = PACKED
    try:
        yield
    finally:
        model.config._attn_implementation = before


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Pass,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend within each prompt of a pass; the output is (1, N, H, Dh).

    Args:
        module: The attention module.
        query: Of the new tokens, (1, H, N, Dh).
        key: Of the new tokens, (1, Hk, N, Dh).
        value: Of the new tokens, (1, Hk, N, Dh).
        attention_mask: ``None``: transformers makes no mask for an attention it does not know.
        packed: The pass.
        sliding_window: Positions that a token sees, itself included; all where ``None``.
        settings: What the model's own attention takes besides: scale, soft cap, sinks.
    """
    attend = _own_attention(module, packed.implementation)
    key, value = packed.joined(module, key, value)
    outputs = []
    for number, part in enumerate(packed.parts):
        output, _ = attend(
            module,
            query[:, :, part.begin : part.end],
            key[:, :, part.path],
            value[:, :, part.path],
            packed.mask(number, sliding_window, query),
            **settings,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _own_attention(module: nn.Module, implementation: str) -> Callable[..., tuple[Tensor, Any]]:
    """Return the attention that the module runs by itself."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    found: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
        implementation, eager
    )
    return found


AttentionInterface.register(PACKED, packed_attention)
