"""The official way of asking: the model writes its answer, and a letter is read from the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.runtime.base import Logits, TokenLogits
from mobilekit.runtime.generate import greedy

from .answers import Answer, Ask, Stopwatch, check_ids, fit
from .parse import parse_letter
from .prompt import GENERATE_VERSION, generate_prompt

__all__ = ["NEW_TOKENS", "GenerateScorer"]

NEW_TOKENS = 5


class GenerateScorer:
    """Greedy decoding of five tokens after the official prompt, one question at a time.

    The official script leaves sampling to the model's defaults, pads on the right, lets the
    options be cut off, and takes the text as it is; here decoding is greedy, nothing is padded,
    only the question's head is ever cut, and :func:`parse_letter` reads the letter.

    Args:
        runtime: What runs the model.
        tokenizer: Its tokenizer.
    """

    prompt_version = GENERATE_VERSION

    def __init__(self, runtime: TokenLogits, tokenizer: TextTokenizer) -> None:
        self.runtime, self.tokenizer = runtime, tokenizer
        self.room = runtime.context_length - (NEW_TOKENS - 1) - len(tokenizer.prefix_ids)
        self.stop = frozenset(() if tokenizer.eos_id is None else (tokenizer.eos_id,))

    def answers(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        """Answer everything asked, in the order asked."""
        watch = Stopwatch()
        for ask in asks:
            yield self._answer(ask, watch)

    def record(self) -> dict[str, Any]:
        """How much text a letter is looked for in."""
        return {"new_tokens": NEW_TOKENS}

    def _answer(self, ask: Ask, watch: Stopwatch) -> Answer:
        name, order = ask.question.id, ask.order
        ids, dropped = fit(generate_prompt(ask.shown), self.tokenizer, self.room)
        if ids is None:
            return Answer(name, "", None, 0, watch.lap(), dropped, False, "too_long", order)
        whole = [*self.tokenizer.prefix_ids, *ids]
        check_ids(whole, self.runtime)
        finite = _AllFinite()
        new = greedy(self.runtime, whole, NEW_TOKENS, stop=self.stop, on_logits=finite)
        ns, tokens = watch.lap(), len(whole)
        if not finite.so_far:
            return Answer(name, "", None, tokens, ns, dropped, False, "not_finite", order)
        text = self.tokenizer.decode([token for token in new if token not in self.stop])
        letter, reason = parse_letter(text)
        return Answer(name, letter, None, tokens, ns, dropped, False, reason, order)


class _AllFinite:
    def __init__(self) -> None:
        self.so_far = True

    def __call__(self, logits: Logits) -> None:
        self.so_far &= bool(np.isfinite(logits).all())
