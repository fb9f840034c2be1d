"""Figures from letters: accuracy with its interval, coverage, and the pull of a position."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilekit.metrics.intervals import wilson_interval

from .dataset import QuestionSet
from .loglik import Answer
from .questions import LETTERS, Question

__all__ = ["CHANCE", "position_prior", "score"]

CHANCE = 0.25


def score(dataset: QuestionSet, answers: Sequence[Answer]) -> dict[str, Any]:
    """The metrics of a result.

    Accuracies are micro averages (right answers by questions) over the questions that the key
    covers, each with its Wilson 95 % interval; without a key they are None. A question without an
    answer counts as wrong. ``correct_ids`` allows a paired test between two results.

    Args:
        dataset: The questions that were asked.
        answers: One for each of them.
    """
    letter = {answer.id: answer.letter for answer in answers}
    invalid = Counter(answer.reason for answer in answers if answer.reason is not None)
    return {
        **_accuracies(dataset, letter),
        "chance": CHANCE,
        "asked": len(answers),
        "invalid": dict(sorted(invalid.items())),
        "invalid_rate": sum(invalid.values()) / len(answers),
        "ties": sum(answer.tie for answer in answers),
        "truncated": sum(answer.dropped > 0 and answer.logprobs is not None for answer in answers),
        "position": position_prior(letter.values()),
    }


def _accuracies(dataset: QuestionSet, letter: Mapping[str, str]) -> dict[str, Any]:
    if dataset.key is None:
        reason = "no answer key was given"
        return {"accuracy": None, "interval": None, "n": 0, "reason": reason, "coverage": None}
    scored = [question for question in dataset.questions if question.id in dataset.key]
    right = {one.id for one in scored if letter[one.id] == dataset.key[one.id]}
    by_field, by_category = defaultdict(list), defaultdict(list)
    for question in scored:
        by_field[question.field.name].append(question)
        by_category[question.field.category].append(question)
    total = _share(scored, right)
    return {
        **total,
        "reason": None if scored else "the key has none of these questions",
        "coverage": {
            "share": len(scored) / len(dataset.questions),
            "key_rows": len(dataset.key),
            "key_rows_not_asked": len(dataset.key) - len(scored),
        },
        "categories": {name: _share(ones, right) for name, ones in by_category.items()},
        "fields": {name: _field(ones, right) for name, ones in by_field.items()},
        "correct_ids": sorted(right),
    }


def _field(questions: Sequence[Question], right: set[str]) -> dict[str, Any]:
    """Return a field's share, its category, and its ids, which paired tests by group need."""
    ids = [question.id for question in questions]
    return {**_share(questions, right), "category": questions[0].field.category, "ids": ids}


def _share(questions: Sequence[Question], right: set[str]) -> dict[str, Any]:
    n, correct = len(questions), sum(question.id in right for question in questions)
    if n == 0:
        return {"accuracy": None, "interval": None, "n": 0, "correct": 0}
    interval = list(wilson_interval(correct, n))
    return {"accuracy": correct / n, "interval": interval, "n": n, "correct": correct}


def position_prior(letters: Iterable[str]) -> dict[str, Any]:
    """Histogram of the chosen letters and its total-variation distance from uniform.

    The distance is 0 where every letter is chosen equally often and 0.75 where it is always the
    same one; None where no letter was chosen.
    """
    counts = Counter(letters)
    histogram = {letter: counts[letter] for letter in LETTERS}
    chosen = sum(histogram.values())
    distance = (
        0.5 * sum(abs(count / chosen - CHANCE) for count in histogram.values()) if chosen else None
    )
    return {"histogram": histogram, "total_variation": distance}
