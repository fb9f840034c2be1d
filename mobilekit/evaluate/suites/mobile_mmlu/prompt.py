"""The prompt of the log-likelihood scorer, byte for byte the same on every device."""

from __future__ import annotations

from typing import NamedTuple

from .questions import LETTERS, Question

__all__ = ["PROMPT_VERSION", "Prompt", "loglik_prompt"]

PROMPT_VERSION = 1


class Prompt(NamedTuple):
    """A prompt in two parts: the head may be shortened from the left, the options never."""

    head: str
    options: str

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.head + self.options


def loglik_prompt(question: Question) -> Prompt:
    """The context whose continuations " A" to " D" are compared.

    The question is stripped as in the official script; options are taken as they stand.

    Source: the Mobile-MMLU ``multiple_choice`` form of lm-eval; field words are the field's name
    with spaces.
    """
    head = (
        "The following are multiple choice questions (with answers) about "
        f"{question.field.words}.\n\n{question.text.strip()}\n"
    )
    pairs = zip(LETTERS, question.options, strict=True)
    options = "".join(f"{letter}. {text}\n" for letter, text in pairs)
    return Prompt(head, f"{options}Answer:")
