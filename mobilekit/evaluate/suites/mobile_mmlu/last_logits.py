"""The last position's logits of many prompts, from anything that gives token logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mobilekit.runtime.base import Logits, TokenLogits

__all__ = ["prompt_logits"]


def prompt_logits(
    runtime: TokenLogits,
    prompts: Sequence[Sequence[int]],
    *,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Logits]]:
    """Yield the index of every prompt with its last position's logits, shape (V,), float32.

    One prompt after the other; one that begins with all of the prompt before it goes on from
    there, which a running state can do, too.

    Args:
        runtime: What runs the model.
        prompts: Token ids, none empty.
        advance: Called with 1 for every prompt.
    """
    held: list[int] = []
    for index, prompt in enumerate(prompts):
        ids = list(prompt)
        position = len(held) if 0 < len(held) < len(ids) and ids[: len(held)] == held else 0
        if position == 0:
            runtime.reset()
        logits = runtime.forward(np.asarray(ids[position:], dtype=np.int64), position)
        held = ids
        if advance is not None:
            advance(1)
        yield index, logits
