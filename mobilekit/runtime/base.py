"""What every runtime gives, wherever the model lives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mobilekit.core.errors import UsageError

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]


class TokenLogits(Protocol):
    """Interface ``token-logits/1``: tokens in, the logits of the last one out, cache inside.

    Attributes:
        name: Name of the runtime ("torch", "executorch", "onnxruntime", "mil-numpy", "coreml").
        version: Its version.
        vocab_size: V.
        context_length: Most positions that the cache holds, T.
    """

    name: str
    version: str
    vocab_size: int
    context_length: int

    def reset(self) -> None:
        """Forget everything; the next call must start at position 0."""

    def forward(self, tokens: Tokens, position: int) -> Logits:
        """Run ``tokens`` (S,), which stand at ``position`` and after it.

        Positions follow on from the calls since ``reset``; going back to an earlier position
        discards what was after it. A running state, which has no positions, can only go back to
        the first.

        Returns:
            Logits of the last token, shape (V,), float32.

        Raises:
            UsageError: If ``position + S`` exceeds the context length, ``position`` is negative,
                leaves a gap or is one that a running state cannot go back to, there is no token,
                or one is not in the vocabulary.
        """


@runtime_checkable
class FullLogits(Protocol):
    """A runtime that can also give every position's logits in one call (torch checkpoints)."""

    def full_logits(self, tokens: Tokens) -> Logits:
        """Return the logits of all positions of one sequence, (S,) → (S, V); needs no cache."""


@runtime_checkable
class BatchedLogits(Protocol):
    """A runtime that can run several prompts at once (torch checkpoints)."""

    def batched_logits(self, prompts: Sequence[Tokens]) -> Iterator[tuple[int, Logits]]:
        """Yield (index into ``prompts``, logits (V,) of that prompt's last token), in any order.

        The prompts, each (S,), are known to fit; neither needs the cache nor changes it.
        """


@runtime_checkable
class HasCursor(Protocol):
    """A runtime that says where it can go on from, so that prompts can share a prefix."""

    cursor: Cursor


class Cursor:
    """Where a runtime's state stands: which calls it can answer, and what it holds after them.

    Args:
        vocab_size: V.
        context_length: Most positions that the cache can hold.
        is_recurrent: Whether it keeps a running state, which holds for its last token only.
        chunk: Tokens that one call of a fixed length takes, where others go in one by one;
            ``None`` where any number goes in at once.

    Attributes:
        held: Positions that the state holds.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        is_recurrent: bool = False,
        chunk: int | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.is_recurrent = is_recurrent
        self.chunk = chunk
        self.held = 0

    def reset(self) -> None:
        """Hold nothing."""
        self.held = 0

    @contextmanager
    def call(self, tokens: Tokens, position: int) -> Iterator[None]:
        """Check a call of ``forward``, and move behind its tokens once the body has run them.

        After a body that raises, a cache holds what stood before ``position``, and a running
        state, which may be half overwritten, nothing.

        Raises:
            UsageError: As :func:`check_call`, before the body is run and without any change.
        """
        check_call(
            tokens,
            position,
            held=self.held,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            is_recurrent=self.is_recurrent,
        )
        self.held = 0 if self.is_recurrent else position
        yield
        self.held = position + len(tokens)


def check_call(
    tokens: Tokens,
    position: int,
    *,
    held: int,
    vocab_size: int,
    context_length: int,
    is_recurrent: bool = False,
) -> None:
    """Refuse a call of ``forward`` that no runtime can answer; all of them refuse the same.

    Args:
        tokens: Token ids, shape (S,).
        position: Where the first of them stands.
        held: Positions that the cache holds.
        vocab_size: V.
        context_length: Most positions that the cache can hold.
        is_recurrent: Whether it keeps a running state, which holds for its last token only.

    Raises:
        UsageError: With what was given and what to do.
    """
    check_span(len(tokens), position, context_length)
    check_follows(position, held, is_recurrent=is_recurrent)
    for token in (int(np.min(tokens)), int(np.max(tokens))):
        if not 0 <= token < vocab_size:
            raise UsageError(
                f"token id {token} is not in the vocabulary of {vocab_size}",
                hint=f"Token ids must be in 0 … {vocab_size - 1}: use the model's own tokenizer.",
            )


def check_span(count: int, position: int, context_length: int) -> None:
    """Refuse what does not fit the exported context.

    Raises:
        UsageError: With the lengths and what to do.
    """
    if count < 1:
        raise UsageError("an empty prompt was given", hint="Give at least one token.")
    if position < 0:
        raise UsageError(
            f"position {position} is negative", hint="Positions count from 0, after a reset."
        )
    if position + count > context_length:
        raise UsageError(
            f"{count} tokens at position {position} do not fit the exported context of "
            f"{context_length}",
            hint="Shorten the prompt, or export with a larger context length.",
        )


def check_follows(position: int, held: int, *, is_recurrent: bool) -> None:
    """Refuse a position that the state cannot go on from.

    Args:
        position: Where the next token stands.
        held: Tokens that the state has seen.
        is_recurrent: Whether it is a running state, which holds for its last token only.

    Raises:
        UsageError: If there is a gap, or a running state would have to go back.
    """
    if position > held:
        raise UsageError(
            f"position {position} was given, but the cache holds {held} tokens",
            hint="Give the tokens in order, from position 0 after a reset.",
        )
    if is_recurrent and 0 < position < held:
        raise UsageError(
            f"position {position} was given after {held} tokens, but this model keeps a running "
            "state, which cannot go back",
            hint=f"Go on at position {held}, or start again at 0.",
        )
