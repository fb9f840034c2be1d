"""Orders in which a question's four options are shown, and the way back to the file's letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Literal

from .questions import LETTERS, Letter, Question

__all__ = ["IN_FILE_ORDER", "Rotations", "in_file", "orders", "reordered"]

Rotations = Literal[1, 4, 24]
IN_FILE_ORDER = "".join(LETTERS)


def orders(rotations: Rotations) -> tuple[str, ...]:
    """Return the orders to ask in, the file's own first.

    An order names, for each place shown, the letter that the option has in the file: in "BCDA"
    the file's option B is shown as A.

    Args:
        rotations: 1, the 4 cyclic ones, or all 24 permutations.
    """
    if rotations == 24:
        return tuple("".join(order) for order in permutations(LETTERS))
    return tuple(IN_FILE_ORDER[k:] + IN_FILE_ORDER[:k] for k in range(rotations))


def reordered(question: Question, order: str) -> Question:
    """Return the question with its options in ``order``."""
    a, b, c, d = (question.options[LETTERS.index(letter)] for letter in _letters(order))
    return replace(question, options=(a, b, c, d))


def in_file(letter: str, order: str) -> Letter | Literal[""]:
    """Return the file's letter of the option that was shown as ``letter``; "" stays."""
    return _letters(order)[LETTERS.index(_letters(letter)[0])] if letter else ""


def _letters(text: str) -> Sequence[Letter]:
    return [LETTERS[LETTERS.index(one)] for one in text]
