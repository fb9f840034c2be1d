"""Figures from letters: accuracy with its interval, coverage, and the pull of a position."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilekit.metrics.intervals import wilson_interval

from .answers import Answer
from .dataset import QuestionSet
from .fields import Field, categories, field_table
from .questions import LETTERS

__all__ = ["CHANCE", "NO_KEY", "accuracies", "position_prior", "score", "share", "weighted"]

CHANCE = 0.25
NO_KEY = "no answer key was given"


def score(dataset: QuestionSet, answers: Sequence[Answer]) -> dict[str, Any]:
    """The metrics of a result.

    Accuracies are micro averages (right answers by questions) over the questions that the key
    covers, each with its Wilson 95 % interval; without a key they are None. A question without an
    answer counts as wrong. ``correct_ids`` allows a paired test between two results.

    Args:
        dataset: The questions that were asked.
        answers: One for each of them, in the file's order of options.
    """
    letters = {answer.id: answer.letter for answer in answers}
    fields = {question.id: question.field for question in dataset.questions}
    invalid = Counter(answer.reason for answer in answers if answer.reason is not None)
    found = accuracies(letters, dataset.key, fields)
    return {
        **found,
        "chance": CHANCE,
        "asked": len(answers),
        "invalid": dict(sorted(invalid.items())),
        "invalid_rate": sum(invalid.values()) / len(answers),
        "ties": sum(answer.tie for answer in answers),
        "truncated": sum(answer.dropped > 0 and answer.reason != "too_long" for answer in answers),
        "position": position_prior(letters.values()),
        "sampling": weighted(dataset.sampling(), found),
    }


def accuracies(
    letters: Mapping[str, str],
    key: Mapping[str, str] | None,
    fields: Mapping[str, Field] | None,
) -> dict[str, Any]:
    """Accuracy over all letters that a key covers, and by category and field.

    Args:
        letters: Chosen letter a question id, "" where there is no answer.
        key: Right letter a question id; None where there is no key.
        fields: Field a question id, for every letter; None where that is not known.
    """
    if key is None:
        nothing = dict.fromkeys(("accuracy", "interval", "coverage"))
        return {**nothing, "n": 0, "reason": NO_KEY}
    scored = [name for name in letters if name in key]
    right = {name for name in scored if letters[name] == key[name]}
    groups = {} if fields is None else _groups({name: fields[name] for name in scored}, right)
    return {
        **share(scored, right),
        "reason": None if scored else "the key has none of these questions",
        "coverage": {
            "share": len(scored) / len(letters),
            "key_rows": len(key),
            "key_rows_not_asked": len(key) - len(scored),
        },
        **groups,
        "correct_ids": sorted(right),
    }


def _groups(fields: Mapping[str, Field], right: set[str]) -> dict[str, Any]:
    by_field, by_category = defaultdict(list), defaultdict(list)
    for name, field in fields.items():
        by_field[field.name].append(name)
        by_category[field.category].append(name)
    known = [field.name for field in field_table()]
    unknown = sorted(by_field.keys() - set(known))
    return {
        "categories": {c: share(by_category[c], right) for c in categories() if c in by_category},
        "fields": {
            # with the ids, which paired tests by category need
            f: {**share(by_field[f], right), "category": fields[ids[0]].category, "ids": ids}
            for f in [*known, *unknown]
            if (ids := by_field.get(f))
        },
    }


def share(names: Sequence[str], right: set[str]) -> dict[str, Any]:
    """Return the share of ``names`` that are right, with its Wilson 95 % interval and counts."""
    n, correct = len(names), sum(name in right for name in names)
    if n == 0:
        return {"accuracy": None, "interval": None, "n": 0, "correct": 0}
    interval = list(wilson_interval(correct, n))
    return {"accuracy": correct / n, "interval": interval, "n": n, "correct": correct}


def weighted(sampling: Mapping[str, Any] | None, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a limit drew, with the accuracy that gives every field its weight in the set.

    Args:
        sampling: Of :meth:`QuestionSet.sampling`.
        found: Of :func:`accuracies`, with fields; without them there is no such accuracy.
    """
    if sampling is None:
        return None
    weights, fields = sampling["weights"], found.get("fields", {})
    total = sum(weights[name] * one["n"] for name, one in fields.items())
    right = sum(weights[name] * one["correct"] for name, one in fields.items())
    return {**sampling, "weighted_accuracy": right / total if total else None}


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
