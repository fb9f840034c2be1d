"""How a tokenizer spells the four answers, and how likely a model finds each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.metrics.language import log_softmax
from mobilekit.runtime.base import Logits, TokenLogits

from .questions import LETTERS

__all__ = ["LetterTokens", "letter_logprobs", "letter_tokens"]

Floats = npt.NDArray[np.float64]

_CONTEXT = "Answer:"


@dataclass(frozen=True)
class LetterTokens:
    """Token ids of the continuations " A", " B", " C" and " D" after "Answer:"."""

    ids: tuple[tuple[int, ...], ...]
    without_space: tuple[tuple[int, ...], ...]

    @property
    def extra(self) -> int:
        """Positions that reading the letters takes after the prompt; 0 for one-token letters."""
        return max(map(len, self.ids)) - 1

    def record(self) -> dict[str, Any]:
        """Tokens a letter, with the leading space (as scored) and without it."""
        return {
            "with_space": [len(ids) for ids in self.ids],
            "without_space": [len(ids) for ids in self.without_space],
        }


def letter_tokens(tokenizer: TextTokenizer) -> LetterTokens:
    """Ask the tokenizer how it continues "Answer:" by each letter.

    Raises:
        InvalidInputError: If it cannot tell the letters apart.
    """
    spaced, bare = (
        tuple(_continuation(tokenizer, f"{space}{letter}") for letter in LETTERS)
        for space in (" ", "")
    )
    if len(set(spaced)) < len(LETTERS) or not all(spaced):
        raise InvalidInputError(
            "the tokenizer gives the answers ' A', ' B', ' C', ' D' no tokens of their own",
            hint="Check that tokenizer.json belongs to this model.",
        )
    return LetterTokens(spaced, bare)


def _continuation(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    context, whole = tokenizer.encode(_CONTEXT), tokenizer.encode(_CONTEXT + text)
    if whole[: len(context)] == context:
        return tuple(whole[len(context) :])
    return tuple(tokenizer.encode(text))  # the letter would merge into "Answer:"


def letter_logprobs(
    runtime: TokenLogits, logits: Logits, letters: LetterTokens, position: int
) -> list[float]:
    """Log-probability of each letter, natural logarithm, summed over its tokens.

    Args:
        runtime: Has just been given the prompt.
        logits: What it answered, shape (V,).
        letters: Token ids of the four continuations.
        position: Tokens in the prompt; decode steps go on from here.

    Returns:
        Four values; NaN where the model's logits are not finite.
    """
    reader = _Reader(runtime, logits, position)
    return [reader.logprob(ids) for ids in letters.ids]


class _Reader:
    """Walks the letters' tokens; what two letters share is decoded once."""

    def __init__(self, runtime: TokenLogits, logits: Logits, position: int) -> None:
        self.runtime, self.position = runtime, position
        self.known: dict[tuple[int, ...], Floats] = {(): _log_probabilities(logits)}
        self.held: tuple[int, ...] = ()  # what the cache holds after the prompt

    def logprob(self, ids: tuple[int, ...]) -> float:
        return float(sum(self._after(ids[:i])[token] for i, token in enumerate(ids)))

    def _after(self, prefix: tuple[int, ...]) -> Floats:
        if prefix not in self.known:
            shared = 0
            while shared < len(prefix) - 1 and self.held[: shared + 1] == prefix[: shared + 1]:
                shared += 1
            new = np.asarray(prefix[shared:], dtype=np.int64)
            self.known[prefix] = _log_probabilities(
                self.runtime.forward(new, self.position + shared)
            )
            self.held = prefix
        return self.known[prefix]


def _log_probabilities(logits: Logits) -> Floats:
    if not np.isfinite(logits).all():
        return np.full(logits.shape, np.nan, dtype=np.float64)
    return log_softmax(logits)
