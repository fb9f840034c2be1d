"""The scorer for devices: one prefill a question, then the four letters at the last position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.runtime.base import BatchedLogits, TokenLogits
from mobilekit.runtime.prompts import prompt_logits

from .answers import Answer, Ask, Stopwatch, check_ids, chosen, fit
from .letters import Ids, LetterTokens, Reading, letter_tokens
from .prompt import LOGLIK_VERSION, loglik_prompt

__all__ = ["LoglikScorer"]

_BLOCK = 4096  # presentations whose token ids are held at once


class LoglikScorer:
    """The letter of highest log-probability wins.

    Equal log-probabilities go to the lowest letter and are marked as a tie. A letter of several
    tokens costs one more prompt for every beginning that it does not share with another letter.

    Args:
        runtime: What runs the model.
        tokenizer: Its tokenizer.

    Raises:
        InvalidInputError: If the tokenizer cannot belong to this model.
    """

    prompt_version = LOGLIK_VERSION

    def __init__(self, runtime: TokenLogits, tokenizer: TextTokenizer) -> None:
        self.runtime, self.tokenizer = runtime, tokenizer
        self.letters: LetterTokens = letter_tokens(tokenizer)
        self.room = runtime.context_length - self.letters.extra - len(tokenizer.prefix_ids)
        check_ids([token for ids in self.letters.ids for token in ids], runtime)

    def answers(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        """Answer everything asked, in the order in which the logits come."""
        for first in range(0, len(asks), _BLOCK):
            yield from self._block(asks[first : first + _BLOCK])

    def record(self) -> dict[str, Any]:
        """Tokens that each letter takes, and what the time of a sample is that of."""
        # of a pass of many questions the first gets all the time: only the sum is a measurement
        timed = "passes of many questions" if isinstance(self.runtime, BatchedLogits) else "each"
        return {"letter_tokens": self.letters.record(), "timed": timed}

    def _block(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        prompts: list[list[int]] = []
        owners: list[tuple[_Prepared, Ids]] = []  # of each prompt, with its context
        for one in map(self._prepared, asks):
            if isinstance(one, Answer):
                yield one
                continue
            for context in self.letters.contexts:
                prompts.append([*one.ids, *context])
                owners.append((one, context))
        watch = Stopwatch()
        for index, logits in prompt_logits(self.runtime, prompts):
            one, context = owners[index]
            one.readings[context] = self.letters.read(context, logits)
            one.ns += watch.lap()
            if len(one.readings) == len(self.letters.contexts):
                yield self._answer(one)

    def _prepared(self, ask: Ask) -> _Prepared | Answer:
        """Return the prompt's tokens, or the answer where they do not fit."""
        watch = Stopwatch()
        ids, dropped = fit(loglik_prompt(ask.shown), self.tokenizer, self.room)
        if ids is None:
            name, order = ask.question.id, ask.order
            return Answer(name, "", None, 0, watch.lap(), dropped, False, "too_long", order)
        whole = [*self.tokenizer.prefix_ids, *ids]
        check_ids(whole, self.runtime)
        return _Prepared(ask, whole, dropped, watch.lap())

    def _answer(self, one: _Prepared) -> Answer:
        values = self.letters.logprobs(one.readings)
        name, order, tokens = one.ask.question.id, one.ask.order, len(one.ids)
        if not all(map(math.isfinite, values)):
            return Answer(name, "", None, tokens, one.ns, one.dropped, False, "not_finite", order)
        letter, tie = chosen(values)
        a, b, c, d = values
        return Answer(name, letter, (a, b, c, d), tokens, one.ns, one.dropped, tie, order=order)


@dataclass
class _Prepared:
    """A prompt's tokens, and what has been read and spent so far to answer it."""

    ask: Ask
    ids: list[int]
    dropped: int
    ns: int
    readings: dict[Ids, Reading] = field(default_factory=dict)
