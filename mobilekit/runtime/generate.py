"""Host loops over any runtime: greedy continuation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .base import Logits, TokenLogits, check_span


def greedy(
    runtime: TokenLogits,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    stop: frozenset[int] = frozenset(),
    on_logits: Callable[[Logits], None] | None = None,
) -> list[int]:
    """Continue a prompt with the most likely token each time; ties go to the lowest id.

    Args:
        runtime: What runs the model; it is reset first.
        prompt: Token ids.
        new_tokens: Most tokens to add.
        stop: Ids that end the text (kept in the result).
        on_logits: Called with the logits (V,) that each new token was chosen from.

    Raises:
        UsageError: If prompt and continuation do not fit the context.
    """
    check_span(len(prompt), 0, runtime.context_length)
    check_span(max(len(prompt) + new_tokens - 1, 1), 0, runtime.context_length)
    runtime.reset()
    tokens, position, pending = [], 0, np.asarray(prompt, dtype=np.int64)
    for _ in range(new_tokens):
        logits = runtime.forward(pending, position)
        if on_logits is not None:
            on_logits(logits)
        position += len(pending)
        tokens.append(int(np.argmax(logits)))
        if tokens[-1] in stop:
            break
        pending = np.asarray(tokens[-1:], dtype=np.int64)
    return tokens
