"""Many prompts on a torch checkpoint: which form of batch, and how large."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilekit.models.modules.rotary import rotary_limit

from .base import Logits, Tokens
from .packed import is_packable, packed_passes
from .prompts import Step, plan_steps

# Tokens in one pass. Measured with the layers of Qwen3-0.6B in bfloat16 on one core (Zen 5) and
# prompts of 100 to 600 tokens: 288 tokens a second one by one, 305 at 512, 294 at 1024, 317 at
# 2048, 311 at 4096: flat from 512 on. Activations grow with it: at 2048, each matrix of the widest
# layer is 12 MB. For GPUs it is a guess, not measured, that should leave no multiprocessor idle.
MAX_TOKENS = {"cpu": 2048, "cuda": 16384}
MAX_PROMPTS = 64  # rows of logits in one pass: 39 MB of them at 151,936 tokens in float32


@torch.inference_mode()
def batched_logits(
    model: Any,
    prompts: Sequence[Tokens],
    *,
    max_tokens: int | None = None,
    max_prompts: int = MAX_PROMPTS,
) -> Iterator[tuple[int, Logits]]:
    """Yield (index, logits (V,)) of each prompt's last token, in the order of the passes.

    A decoder whose tokens mix by attention alone gets packed passes without padding, in which
    prompts share what they begin with. Any other causal model (Mamba-2) gets batches of similar
    length, padded after the end: what is computed there is seen by no token of the prompt.

    Args:
        model: A transformers causal LM, on any device, in any dtype.
        prompts: Token ids of each, (S,).
        max_tokens: Tokens in one pass, padding included; a longer prompt has one for itself. What
            suits the device where ``None``.
        max_prompts: Prompts in one pass, hence rows of logits.
    """
    most = max_tokens or MAX_TOKENS.get(model.device.type, MAX_TOKENS["cuda"])
    for indices in _alike(model.config, prompts):
        steps = plan_steps([prompts[index] for index in indices])
        if is_packable(model):
            passes = packed_passes(model, steps, max_tokens=most, max_prompts=max_prompts)
        else:
            passes = _padded_passes(model, steps, max_tokens=most, max_prompts=max_prompts)
        for group, logits in passes:
            rows = logits.float().cpu().numpy()
            for step, row in zip(group, rows, strict=True):
                for index in step.indices:
                    yield indices[index], row.copy()


def _alike(config: Any, prompts: Sequence[Tokens]) -> list[list[int]]:
    """Group prompts that have the same rotary frequencies, however they are batched.

    Some models choose them by the longest position of a call once it is past a limit; beyond it
    only prompts of one length are brought together. The shorter come first, since frequencies of
    the type "dynamic" stay what the longest call made them until one within the limit.
    """
    limit = rotary_limit(config)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, tokens in enumerate(prompts):
        groups[0 if limit is None or len(tokens) <= limit else len(tokens)].append(index)
    return [groups[key] for key in sorted(groups)]


def _padded_passes(
    model: Any, steps: Sequence[Step], *, max_tokens: int, max_prompts: int
) -> Iterator[tuple[Sequence[Step], Tensor]]:
    """Run prompts in batches of similar length, padded at the right."""
    ordered = sorted(steps, key=lambda step: len(step.tokens))
    while ordered:
        longest = len(ordered[-1].tokens)  # the longest first: what does not fit fails at once
        count = max(1, min(max_tokens // longest, max_prompts))
        group, ordered = ordered[-count:], ordered[:-count]
        ids = np.zeros((len(group), longest), dtype=np.int64)
        for row, step in zip(ids, group, strict=True):
            row[: len(step.tokens)] = step.tokens
        last = torch.tensor([[len(step.tokens) - 1] for step in group], device=model.device)
        output = model(
            input_ids=torch.from_numpy(ids).to(model.device), logits_to_keep=last, use_cache=False
        )
        yield group, output.logits[:, 0]
