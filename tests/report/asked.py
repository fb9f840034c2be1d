"""Results of an invented question set, scored by the suite itself."""

from __future__ import annotations

import random
from typing import Any

from mobilekit.evaluate.suites.mobile_mmlu.dataset import QuestionSet
from mobilekit.evaluate.suites.mobile_mmlu.fields import field_table
from mobilekit.evaluate.suites.mobile_mmlu.loglik import Answer
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, Question
from mobilekit.evaluate.suites.mobile_mmlu.score import score

QUESTIONS_A_FIELD = 25


def question_set(each: int = QUESTIONS_A_FIELD, fields: int = 80) -> QuestionSet:
    """Return so many invented questions a field, with a key."""
    rng = random.Random(5)
    asked = [
        Question(f"{field.name}-{i}", "invented", ("1", "2", "3", "4"), field)
        for field in field_table()[:fields]
        for i in range(each)
    ]
    key = {question.id: rng.choice(LETTERS) for question in asked}
    return QuestionSet("Invented", None, False, "ab" * 32, tuple(asked), key)


def answers(
    asked: QuestionSet, share: float, seed: int, *, worse: str = "", silent: int = 0
) -> list[Answer]:
    """Return answers of which ``share`` are right, none in the category ``worse``.

    The first ``silent`` questions get no answer.
    """
    rng, found = random.Random(seed), []
    for index, question in enumerate(asked.questions):
        right = (asked.key or {})[question.id]
        wrong = rng.choice([letter for letter in LETTERS if letter != right])
        is_right = rng.random() < share and question.field.category != worse
        if index < silent:
            found.append(Answer(question.id, "", None, 40, 1000, reason="not_finite"))
        else:
            chosen = right if is_right else wrong
            found.append(Answer(question.id, chosen, (0.0, 0.0, 0.0, 0.0), 40, 1000))
    return found


def result(name: str, asked: QuestionSet, given: list[Answer], **more: Any) -> dict[str, Any]:
    """Return a result document of one model."""
    return {
        "schema": "mobilekit.result/1",
        "kind": "evaluate",
        "device": {"class": "host-x86_64", "cpu": "Invented CPU"},
        "runtime": {"name": "torch"},
        "artifact": {"id": name, "sha256": "ab" * 32, "bytes": 1},
        "workload": {"id": asked.name},
        "metrics": {"suite": "mobile_mmlu", "scorer": "loglik", **score(asked, given), **more},
        "letters": {answer.id: answer.letter for answer in given},
        "created": "2026-01-02T03:04:05Z",
    }


def order(total: int, *, consistency: float = 0.7) -> dict[str, Any]:
    """Return a record of four rotations of ``total`` questions."""
    histogram = {"A": total * 4 - 60, "B": 30, "C": 20, "D": 10}
    return {
        "rotations": 4,
        "acc_mean": 0.613,
        "acc_worst": 0.412,
        "consistency": consistency,
        "position_prior": {"histogram": histogram, "total_variation": 0.31},
        "reason": None,
    }
