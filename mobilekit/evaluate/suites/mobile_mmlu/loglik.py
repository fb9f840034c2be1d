"""The scorer for devices: one prefill a question, then the four letters at the last position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
        watch = Stopwatch()
        prompts: list[list[int]] = []
        owners: list[tuple[Ask, int, Ids]] = []  # of each prompt: ask, tokens cut, context
        for ask in asks:
            ids, dropped = fit(loglik_prompt(ask.shown), self.tokenizer, self.room)
            if ids is None:
                name, order = ask.question.id, ask.order
                yield Answer(name, "", None, 0, watch.lap(), dropped, False, "too_long", order)
                continue
            whole = [*self.tokenizer.prefix_ids, *ids]
            check_ids(whole, self.runtime)
            for context in self.letters.contexts:
                prompts.append([*whole, *context])
                owners.append((ask, dropped, context))
        readings: dict[tuple[str, str], dict[Ids, Reading]] = {}
        for index, logits in prompt_logits(self.runtime, prompts):
            ask, dropped, context = owners[index]
            found = readings.setdefault((ask.question.id, ask.order), {})
            found[context] = self.letters.read(context, logits)
            if len(found) == len(self.letters.contexts):
                del readings[ask.question.id, ask.order]
                tokens = len(prompts[index]) - len(context)
                yield self._answer(ask, found, tokens, watch.lap(), dropped)

    def _answer(
        self, ask: Ask, found: dict[Ids, Reading], tokens: int, ns: int, dropped: int
    ) -> Answer:
        values = self.letters.logprobs(found)
        name, order = ask.question.id, ask.order
        if not all(map(math.isfinite, values)):
            return Answer(name, "", None, tokens, ns, dropped, reason="not_finite", order=order)
        letter, tie = chosen(values)
        a, b, c, d = values
        return Answer(name, letter, (a, b, c, d), tokens, ns, dropped, tie, order=order)
