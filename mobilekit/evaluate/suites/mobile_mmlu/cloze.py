"""The options' full texts as continuations of the question, which does not list them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.metrics.language import log_softmax, negative_log_likelihood
from mobilekit.runtime.base import FullLogits, HasCursor, Logits, TokenLogits

from .answers import Answer, Ask, Stopwatch, check_ids, chosen, fit
from .dataset import QuestionSet
from .letters import continuation
from .prompt import CLOZE_VERSION, cloze_prompt
from .score import accuracies

__all__ = ["ClozeScorer", "cloze_metrics"]


class ClozeScorer:
    """The option whose text has the highest summed log-probability wins.

    A runtime with ``full_logits`` is asked once an option. Any other decodes the option's tokens
    and goes back to the end of the prompt for the next one; a running state, which cannot go back,
    is given the prompt again.

    Args:
        runtime: What runs the model.
        tokenizer: Its tokenizer.
    """

    prompt_version = CLOZE_VERSION

    def __init__(self, runtime: TokenLogits, tokenizer: TextTokenizer) -> None:
        self.runtime, self.tokenizer = runtime, tokenizer
        # one that does not say is only asked what every runtime can do
        self._goes_back = isinstance(runtime, HasCursor) and not runtime.cursor.is_recurrent

    def answers(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        """Answer everything asked, in the order asked."""
        watch = Stopwatch()
        for ask in asks:
            yield self._answer(ask, watch)

    def record(self) -> dict[str, Any]:
        """How the log-probabilities were got."""
        return {"logits": "full" if isinstance(self.runtime, FullLogits) else "step"}

    def _answer(self, ask: Ask, watch: Stopwatch) -> Answer:
        name, order = ask.question.id, ask.order
        prompt = cloze_prompt(ask.question)
        texts = [
            continuation(self.tokenizer, prompt.options.lstrip("\n"), f" {option}")
            for option in ask.question.options
        ]
        if not all(texts):
            return Answer(name, "", None, 0, watch.lap(), 0, False, "no_text", order)
        prefix = self.tokenizer.prefix_ids
        room = self.runtime.context_length - len(prefix) - (max(map(len, texts)) - 1)
        ids, dropped = fit(prompt, self.tokenizer, room)
        if ids is None:
            return Answer(name, "", None, 0, watch.lap(), dropped, False, "too_long", order)
        whole = [*prefix, *ids]
        check_ids([*whole, *(token for text in texts for token in text)], self.runtime)
        ask_runtime = self._full if isinstance(self.runtime, FullLogits) else self._stepwise
        values = ask_runtime(whole, texts)
        tokens, ns = len(whole), watch.lap()
        if not all(map(math.isfinite, values)):
            return Answer(name, "", None, tokens, ns, dropped, reason="not_finite", order=order)
        letter, tie = chosen(values)
        a, b, c, d = values
        return Answer(name, letter, (a, b, c, d), tokens, ns, dropped, tie, order=order)

    def _full(self, prompt: list[int], texts: Sequence[tuple[int, ...]]) -> list[float]:
        assert isinstance(self.runtime, FullLogits)
        values = []
        for text in texts:
            ids = np.asarray([*prompt, *text[:-1]], dtype=np.int64)
            rows = self.runtime.full_logits(ids)[len(prompt) - 1 :][: len(text)]
            finite = bool(np.isfinite(rows).all())
            values.append(-negative_log_likelihood(rows, text) if finite else math.nan)
        return values

    def _stepwise(self, prompt: list[int], texts: Sequence[tuple[int, ...]]) -> list[float]:
        first = self._prefill(prompt)
        values, is_at_prompt = [], True
        for text in texts:
            total, logits = 0.0, first
            for index, token in enumerate(text):
                if index == 1:
                    logits = self._leave(prompt, text[0], is_at_prompt)
                elif index > 1:
                    logits = self._step(text[index - 1], len(prompt) + index - 1)
                total += _logprob(logits, token)
                is_at_prompt &= index == 0
            values.append(total)
        return values

    def _leave(self, prompt: list[int], token: int, is_at_prompt: bool) -> Logits:
        """Give the first token after the prompt, going back to its end where need be."""
        if not is_at_prompt and not self._goes_back:
            self._prefill(prompt)
        return self._step(token, len(prompt))

    def _prefill(self, prompt: list[int]) -> Logits:
        self.runtime.reset()
        return self.runtime.forward(np.asarray(prompt, dtype=np.int64), 0)

    def _step(self, token: int, position: int) -> Logits:
        return self.runtime.forward(np.asarray([token], dtype=np.int64), position)


def _logprob(logits: Logits, token: int) -> float:
    return float(log_softmax(logits)[token]) if np.isfinite(logits).all() else math.nan


def cloze_metrics(dataset: QuestionSet, answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracies of the three ways to compare continuations, with the letters of each.

    ``acc`` compares summed log-probabilities, ``acc_norm`` those divided by the option's length in
    characters, ``acc_bytes`` by its length in UTF-8 bytes. An empty option is never chosen by the
    latter two.

    Args:
        dataset: The questions that were asked.
        answers: Of a :class:`ClozeScorer`, in the file's order of options.

    Source: ``acc``, ``acc_norm`` and ``acc_bytes`` of lm-eval's ``multiple_choice``.
    """
    options = {question.id: question.options for question in dataset.questions}
    lengths: Mapping[str, Mapping[str, list[int]]] = {
        "acc": {name: [1] * len(texts) for name, texts in options.items()},
        "acc_norm": {name: [len(text) for text in texts] for name, texts in options.items()},
        "acc_bytes": {name: [len(t.encode()) for t in texts] for name, texts in options.items()},
    }
    found = {}
    for metric, of in lengths.items():
        letters = {answer.id: _best(answer, of[answer.id]) for answer in answers}
        scored = accuracies(letters, dataset.key, None)
        kept = {key: scored.get(key, 0) for key in ("accuracy", "interval", "n", "correct")}
        found[metric] = {**kept, "letters": letters}
    return found


def _best(answer: Answer, lengths: Sequence[int]) -> str:
    if answer.logprobs is None:
        return ""
    pairs = zip(answer.logprobs, lengths, strict=True)
    return chosen([value / length if length else -math.inf for value, length in pairs])[0]
