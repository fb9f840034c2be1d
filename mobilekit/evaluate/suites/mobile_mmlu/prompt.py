"""The prompts of the three scorers, byte for byte the same on every device."""

from __future__ import annotations

from typing import NamedTuple

from .questions import LETTERS, Question

__all__ = [
    "CLOZE_VERSION",
    "GENERATE_VERSION",
    "LOGLIK_VERSION",
    "Prompt",
    "cloze_prompt",
    "generate_prompt",
    "loglik_prompt",
]

# raised whenever a byte of the prompt changes: figures of two versions are not comparable
CLOZE_VERSION = 1
GENERATE_VERSION = 1
LOGLIK_VERSION = 1


class Prompt(NamedTuple):
    """A prompt in two parts: the head may be shortened from the left, the rest never.

    Its ``repr`` shows its length alone, so that no log gets the text.
    """

    head: str
    options: str

    def __repr__(self) -> str:
        return f"Prompt({len(self.text)} characters)"

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
    return Prompt(head, f"{_listed(question)}Answer:")


def generate_prompt(question: Question) -> Prompt:
    """The user string of the official script, which the model continues by a letter.

    Zero-shot, without a chat template; the colon after "Answer" is U+FF1A, and a line break ends
    the prompt.

    Source: ``generate_answers.py`` of github VILA-Lab/Mobile-MMLU.
    """
    head = (
        "Answer the following multiple choice question and provide only letter of the correct "
        f"answer.\n{question.text.strip()}\n"
    )
    return Prompt(head, f"{_listed(question)}Answer\uff1a\n")


def cloze_prompt(question: Question) -> Prompt:
    """The context whose continuations are the full texts of the options, which it does not list.

    Source: ``mmlu_continuation`` of lm-eval; the paper does not have this form.
    """
    head = (
        f"The following are questions (with answers) about {question.field.words}.\n\n"
        f"Question: {question.text.strip()}"
    )
    return Prompt(head, "\nAnswer:")


def _listed(question: Question) -> str:
    pairs = zip(LETTERS, question.options, strict=True)
    return "".join(f"{letter}. {text}\n" for letter, text in pairs)
