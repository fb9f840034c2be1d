"""A limit's weights: how many questions each drawn one stands for."""

from __future__ import annotations

from typing import Any

import pytest

from mobilekit.evaluate.suites.mobile_mmlu.answers import Answer
from mobilekit.evaluate.suites.mobile_mmlu.dataset import QuestionSet, limited
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.questions import Question
from mobilekit.evaluate.suites.mobile_mmlu.score import score

SIZES = {"law": 50, "ethics": 30, "shopping": 17, "podcasting": 3}


def whole() -> QuestionSet:
    asked = [
        Question(f"{name}-{i}", "?", ("1", "2", "3", "4"), find_field(name))
        for name, size in SIZES.items()
        for i in range(size)
    ]
    return QuestionSet("x", None, False, "", tuple(asked), {one.id: "A" for one in asked})


def test_weights_add_up_to_the_fields_that_were_drawn_from() -> None:
    dataset = limited(whole(), 10, seed=1)
    sampling = dataset.sampling()
    assert sampling is not None
    assert (sampling["population"], sampling["sampled"]) == (100, 10)
    drawn = {name: sum(q.field.name == name for q in dataset.questions) for name in SIZES}
    assert sampling["fields_without"] == sum(not count for count in drawn.values())
    assert sampling["weights"] == {n: SIZES[n] / c for n, c in drawn.items() if c}
    assert whole().sampling() is None


def test_the_weighted_accuracy_gives_every_field_its_size() -> None:
    dataset = limited(whole(), 7, seed=0)
    letters: dict[str, Any] = {"law": "A", "ethics": "B", "shopping": "A", "podcasting": "B"}
    answers = [Answer(one.id, letters[one.field.name], None, 1, 1) for one in dataset.questions]
    metrics = score(dataset, answers)
    present = {question.field.name for question in dataset.questions}
    expected = sum(SIZES[n] for n in present if letters[n] == "A") / sum(SIZES[n] for n in present)
    assert metrics["sampling"]["weighted_accuracy"] == pytest.approx(expected)
    assert (
        score(whole(), [Answer(q.id, "A", None, 1, 1) for q in whole().questions])["sampling"]
        is None
    )
