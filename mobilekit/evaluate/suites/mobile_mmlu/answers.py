"""What is asked and what comes back: a question in one order of its options, and its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.runtime.base import TokenLogits

from .orders import IN_FILE_ORDER, reordered
from .prompt import Prompt
from .questions import LETTERS, Question

__all__ = ["Answer", "Ask", "Reason", "Scorer", "Stopwatch", "check_ids", "chosen", "fit"]

# why there is no letter; "no_text": the model wrote nothing, or an option has no token
Reason = Literal["not_finite", "too_long", "no_text", "no_letter", "several_letters"]
Four = tuple[float, float, float, float]


@dataclass(frozen=True)
class Ask:
    """A question in one order of its options.

    Attributes:
        question: As the file has it.
        order: The letters that the options shown have in the file, "ABCD" where none is moved.
    """

    question: Question
    order: str = IN_FILE_ORDER

    @property
    def shown(self) -> Question:
        """The question as it is shown."""
        return reordered(self.question, self.order)


@dataclass(frozen=True)
class Answer:
    """What the model chose for one question in one order, and how it came to it; no text.

    Attributes:
        id: The question's.
        letter: As shown; "" where there is no answer, with the reason.
        logprobs: Four natural-log probabilities, in the order shown; None where the scorer has
            none, or with a reason.
        tokens: Length of the prompt.
        ns: Wall time that the run took for it; of answers that come together, the first has all.
        dropped: Prompt tokens cut from the left.
        tie: Whether another option was as likely.
        order: The letters that the options shown have in the file.
    """

    id: str
    letter: Literal["A", "B", "C", "D", ""]
    logprobs: Four | None
    tokens: int
    ns: int
    dropped: int = 0
    tie: bool = False
    reason: Reason | None = None
    order: str = IN_FILE_ORDER


class Scorer(Protocol):
    """Answers questions with one runtime.

    Attributes:
        prompt_version: Version of the prompt that it uses.
    """

    prompt_version: int

    def answers(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        """Answer everything that a run asks, in whatever order is fast."""

    def record(self) -> dict[str, Any]:
        """What a result says about how the answers were read."""


@dataclass
class Stopwatch:
    """Shares the time of a run out among its answers as they come."""

    last: int = field(default_factory=time.perf_counter_ns)

    def lap(self) -> int:
        """Return the nanoseconds since the answer before."""
        before, self.last = self.last, time.perf_counter_ns()
        return self.last - before


def chosen(values: Sequence[float]) -> tuple[Literal["A", "B", "C", "D"], bool]:
    """Return the letter of the largest of four finite values, and whether others are as large.

    Equal values go to the lowest letter.
    """
    best = max(values)
    return LETTERS[list(values).index(best)], list(values).count(best) > 1


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
