"""How a tokenizer spells the four answers, and how likely a model finds each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.metrics.language import log_softmax
from mobilekit.runtime.base import Logits

from .questions import LETTERS

__all__ = ["LetterTokens", "Reading", "continuation", "letter_tokens"]

Ids = tuple[int, ...]
Reading = Mapping[int, float]  # token id → natural-log probability

_CONTEXT = "Answer:"


@dataclass(frozen=True)
class LetterTokens:
    """Token ids of the continuations " A", " B", " C" and " D" after "Answer:"."""

    ids: tuple[Ids, ...]
    without_space: tuple[Ids, ...]

    @cached_property
    def contexts(self) -> tuple[Ids, ...]:
        """What stands between a prompt and a token to be read; nothing, for one-token letters.

        What begins with another one follows it, so that a cache can go on from there.
        """
        return tuple(sorted({ids[:i] for ids in self.ids for i in range(len(ids))}))

    @property
    def extra(self) -> int:
        """Positions that reading the letters takes after the prompt; 0 for one-token letters."""
        return max(map(len, self.ids)) - 1

    def read(self, context: Ids, logits: Logits) -> Reading:
        """Return the log-probabilities, in float64, of what letters go on with after a context.

        Args:
            context: One of :attr:`contexts`.
            logits: The last position's, shape (V,); where they are not finite, all are NaN.
        """
        known = [ids[len(context)] for ids in self.ids if self._goes_on(ids, context)]
        if not np.isfinite(logits).all():
            return dict.fromkeys(known, float("nan"))
        values = log_softmax(logits)
        return {token: float(values[token]) for token in known}

    @staticmethod
    def _goes_on(ids: Ids, context: Ids) -> bool:
        return len(ids) > len(context) and ids[: len(context)] == context

    def logprobs(self, readings: Mapping[Ids, Reading]) -> list[float]:
        """Return the log-probability of each letter, summed over its tokens.

        Args:
            readings: Of every context.
        """
        return [
            float(sum(readings[ids[:i]][token] for i, token in enumerate(ids))) for ids in self.ids
        ]

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
        tuple(continuation(tokenizer, _CONTEXT, f"{space}{letter}") for letter in LETTERS)
        for space in (" ", "")
    )
    if len(set(spaced)) < len(LETTERS) or not all(spaced):
        raise InvalidInputError(
            "the tokenizer gives the answers ' A', ' B', ' C', ' D' no tokens of their own",
            hint="Check that tokenizer.json belongs to this model.",
        )
    return LetterTokens(spaced, bare)


def continuation(tokenizer: TextTokenizer, context: str, text: str) -> Ids:
    """Return the ids of ``text`` as it is tokenized after ``context``."""
    before, whole = tokenizer.encode(context), tokenizer.encode(context + text)
    if whole[: len(before)] == before:
        return tuple(whole[len(before) :])
    return tuple(tokenizer.encode(text))  # its beginning would merge into the context
