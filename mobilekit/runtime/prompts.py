"""Many prompts on one runtime: the same logits as one by one, with less work.

Prompts that begin alike are brought together, and what they share is computed once. A runtime
that runs one sequence goes back in its cache to where the next prompt differs; one that can run
several (a torch checkpoint) gets all of them and packs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .base import BatchedLogits, HasCursor, Logits, TokenLogits, Tokens, check_call

__all__ = ["Step", "plan_steps", "prompt_logits"]


@dataclass(frozen=True, eq=False)
class Step:
    """One distinct prompt, in an order in which neighbours share much.

    Attributes:
        tokens: The whole prompt, (S,).
        start: Position from which it has to be fed, below S: the step before left the same
            tokens before it.
        indices: Which of the given prompts it answers; several where they are equal.
    """

    tokens: Tokens
    start: int
    indices: tuple[int, ...]


def prompt_logits(
    runtime: TokenLogits,
    prompts: Sequence[Sequence[int]],
    *,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Logits]]:
    """Answer many prompts, each as if it were alone, in whatever order is fast.

    The logits are those of ``runtime.forward(prompt, 0)`` up to rounding: matrix products of
    another shape add up in another order. In float32 that moves a logit by some 1e-6 of its size,
    in half precision by as much as the type itself does. Prompts that are equal get equal bits.

    What the runtime held before is gone afterwards, and it must not be used between two answers.

    Args:
        runtime: What runs the model.
        prompts: Token ids of each, at least one.
        advance: Called with the number of prompts that have just been answered.

    Returns:
        An iterator of (index into ``prompts``, logits of its last position (V,), float32); each
        prompt comes once.

    Raises:
        UsageError: Before anything is run, if a prompt is empty, longer than the context, or has
            an id that is not in the vocabulary.
    """
    arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    for tokens in arrays:
        check_call(
            tokens,
            0,
            held=0,
            vocab_size=runtime.vocab_size,
            context_length=runtime.context_length,
        )
    if isinstance(runtime, BatchedLogits):
        return _told(runtime.batched_logits(arrays), advance)
    return _told(_in_turn(runtime, arrays), advance)


def plan_steps(
    prompts: Sequence[Tokens], *, is_recurrent: bool = False, chunk: int | None = None
) -> list[Step]:
    """Order prompts so that each begins with as much of the one before as any order allows.

    Args:
        prompts: Token ids of each, (S,), S ≥ 1.
        is_recurrent: Whether the state is a running one: a prompt can then only go on from the
            end of the one before.
        chunk: Tokens that go in at once, where the rest go in one by one; a prompt then starts
            where the fewest calls are left, perhaps before what it shares.

    Returns:
        One step a distinct prompt. Feeding ``tokens[start:]`` of each in turn feeds, with no
        chunk, every node of the prompts' prefix tree once.
    """
    # of bytes that are as many a token, any order brings equal beginnings together
    keys = [tokens.astype(">i8").tobytes() for tokens in prompts]
    equal: dict[bytes, list[int]] = {}
    for index in sorted(range(len(prompts)), key=keys.__getitem__):
        equal.setdefault(keys[index], []).append(index)
    steps: list[Step] = []
    before = np.empty(0, dtype=np.int64)
    for indices in equal.values():
        tokens = prompts[indices[0]]
        shared = _shared(before, tokens)
        if is_recurrent:
            start = shared if shared == len(before) else 0
        else:
            start = _fewest_calls(shared, len(tokens), chunk)
        steps.append(Step(tokens, start, tuple(indices)))
        before = tokens
    return steps


def _shared(one: Tokens, other: Tokens) -> int:
    """Return how many tokens two prompts have in common at their beginning."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def _fewest_calls(shared: int, length: int, chunk: int | None) -> int:
    """Return the position, at most ``shared``, from which the rest takes the fewest calls."""
    if chunk is None:
        return shared

    def calls(start: int) -> int:
        return sum(divmod(length - start, chunk))

    earliest = max(0, shared - chunk + 1)  # one chunk earlier is one call more
    return min(range(shared, earliest - 1, -1), key=calls)


def _in_turn(runtime: TokenLogits, prompts: Sequence[Tokens]) -> Iterator[tuple[int, Logits]]:
    """Run one prompt after the other, going back in the cache where the runtime can."""
    if isinstance(runtime, HasCursor):
        cursor = runtime.cursor
        steps = plan_steps(prompts, is_recurrent=cursor.is_recurrent, chunk=cursor.chunk)
    else:  # it does not say, so it is only asked what every runtime can do
        steps = plan_steps(prompts, is_recurrent=True)
    runtime.reset()
    for step in steps:
        logits = runtime.forward(step.tokens[step.start :], step.start)
        for index in step.indices:
            yield index, logits.copy()


def _told(
    answers: Iterator[tuple[int, Logits]], advance: Callable[[int], None] | None
) -> Iterator[tuple[int, Logits]]:
    for answer in answers:
        if advance is not None:
            advance(1)
        yield answer
