"""The scorer for devices: one prefill a question, then the four letters at the last position."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.runtime.base import TokenLogits

from .letters import LetterTokens, letter_logprobs, letter_tokens
from .prompt import Prompt, loglik_prompt
from .questions import LETTERS, Question

__all__ = ["Answer", "LoglikScorer"]

Reason = Literal["not_finite", "too_long"]


@dataclass(frozen=True)
class Answer:
    """What the model chose for one question, and how it came to it; no text.

    ``logprobs`` are four natural-log probabilities, A to D; None, with the reason, where there is
    no answer. ``dropped`` counts prompt tokens cut from the left, ``ns`` the whole question.
    """

    id: str
    letter: Literal["A", "B", "C", "D", ""]
    logprobs: tuple[float, float, float, float] | None
    tokens: int
    ns: int
    dropped: int = 0
    tie: bool = False
    reason: Reason | None = None


class LoglikScorer:
    """Answers questions with a runtime; the letter of highest log-probability wins.

    Equal log-probabilities go to the lowest letter and are marked as a tie.

    Args:
        runtime: What runs the model.
        tokenizer: Its tokenizer.

    Raises:
        InvalidInputError: If the tokenizer cannot belong to this model.
    """

    def __init__(self, runtime: TokenLogits, tokenizer: TextTokenizer) -> None:
        self.runtime, self.tokenizer = runtime, tokenizer
        self.letters: LetterTokens = letter_tokens(tokenizer)
        self.room = runtime.context_length - self.letters.extra - len(tokenizer.prefix_ids)
        check_ids([token for ids in self.letters.ids for token in ids], runtime)

    def answer(self, question: Question) -> Answer:
        """Answer one question."""
        started = time.perf_counter_ns()
        ids, dropped = fit(loglik_prompt(question), self.tokenizer, self.room)
        if ids is None:
            return self._nothing(question, started, "too_long", 0, dropped)
        tokens = np.asarray([*self.tokenizer.prefix_ids, *ids], dtype=np.int64)
        check_ids(tokens.tolist(), self.runtime)
        self.runtime.reset()
        logits = self.runtime.forward(tokens, 0)
        found = letter_logprobs(self.runtime, logits, self.letters, len(tokens))
        if not all(math.isfinite(value) for value in found):
            return self._nothing(question, started, "not_finite", len(tokens), dropped)
        best = max(found)
        return Answer(
            id=question.id,
            letter=LETTERS[found.index(best)],
            logprobs=(found[0], found[1], found[2], found[3]),
            tokens=len(tokens),
            ns=time.perf_counter_ns() - started,
            dropped=dropped,
            tie=found.count(best) > 1,
        )

    @staticmethod
    def _nothing(
        question: Question, started: int, reason: Reason, tokens: int, dropped: int
    ) -> Answer:
        ns = time.perf_counter_ns() - started
        return Answer(question.id, "", None, tokens, ns, dropped, reason=reason)


def fit(prompt: Prompt, tokenizer: TextTokenizer, room: int) -> tuple[list[int] | None, int]:
    """Return the prompt's ids, cut from the left to ``room`` tokens, and how many were cut.

    The instruction and the question's beginning go first; where even the options do not fit, the
    ids are None.
    """
    ids, ends = tokenizer.encode_with_ends(prompt.text)
    surplus = max(0, len(ids) - room)
    cuttable = sum(end <= len(prompt.head) for end in ends)
    return (None if surplus > cuttable else ids[surplus:]), surplus


def check_ids(ids: Sequence[int], runtime: TokenLogits) -> None:
    """Refuse ids that the model does not have.

    Raises:
        InvalidInputError: With both sizes.
    """
    largest = max(ids, default=0)
    if largest >= runtime.vocab_size:
        raise InvalidInputError(
            f"the tokenizer gives id {largest}, but the model has {runtime.vocab_size} tokens",
            hint="Use the tokenizer.json that belongs to this model.",
        )
