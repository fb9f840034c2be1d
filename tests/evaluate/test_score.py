from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu.answers import Answer
from mobilekit.evaluate.suites.mobile_mmlu.dataset import QuestionSet, load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, Question
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.evaluate.suites.mobile_mmlu.score import position_prior, score
from mobilekit.metrics.intervals import wilson_interval

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
FULL, KEY = VECTORS / "fixture_full", VECTORS / "fixture_key.csv"


def choosing(planted: Any, tokenizer: TextTokenizer, wanted: dict[str, str]) -> Any:
    """A runtime that knows, by the question's text, which letter to prefer."""
    texts = {question.text: wanted[question.id] for question in load_dataset(FULL).questions}

    def choose(text: str) -> dict[str, float]:
        return {f" {next(one for known, one in texts.items() if known in text)}": 3.0}

    return planted(tokenizer, choose)


@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0), (2, 0.0)])
def test_known_accuracies(
    planted: Any, tokenizer: TextTokenizer, shift: int, accuracy: float
) -> None:
    key = load_dataset(FULL, KEY).key
    assert key is not None
    wanted = {i: LETTERS[(LETTERS.index(letter) + shift) % 4] for i, letter in key.items()}
    outcome = mobile_mmlu(choosing(planted, tokenizer, wanted), tokenizer, FULL, key=KEY)
    metrics = outcome.metrics
    assert outcome.letters == wanted
    assert (metrics["accuracy"], metrics["n"]) == (accuracy, 12)
    assert metrics["interval"] == list(wilson_interval(round(12 * accuracy), 12))
    assert {share["accuracy"] for share in metrics["fields"].values()} == {accuracy}
    assert sum(share["n"] for share in metrics["categories"].values()) == 12
    assert metrics["correct_ids"] == (sorted(key) if accuracy else [])
    assert metrics["position"]["total_variation"] == 0  # three questions a letter


@pytest.mark.parametrize("letter", LETTERS)
def test_a_constant_letter_scores_its_share_of_the_key(
    planted: Any, tokenizer: TextTokenizer, letter: str
) -> None:
    runtime = planted(tokenizer, lambda text: {f" {letter}": 1.0})
    metrics = mobile_mmlu(runtime, tokenizer, FULL, key=KEY).metrics
    assert metrics["accuracy"] == 0.25
    assert metrics["position"]["total_variation"] == 0.75
    assert metrics["position"]["histogram"][letter] == 12


def test_without_a_key_accuracy_is_null_and_letters_are_there(
    planted: Any, tokenizer: TextTokenizer
) -> None:
    outcome = mobile_mmlu(planted(tokenizer, lambda text: {" C": 1.0}), tokenizer, FULL)
    assert outcome.metrics["accuracy"] is None
    assert outcome.metrics["interval"] is None
    assert outcome.metrics["reason"] == "no answer key was given"
    assert set(outcome.letters.values()) == {"C"}


def questions(count: int) -> tuple[Question, ...]:
    fields = [find_field(name) for name in ("law", "ethics", "first_aid", "made_up_field")]
    return tuple(
        Question(f"{i:08x}", "?", ("1", "2", "3", "4"), fields[i % 4]) for i in range(count)
    )


def pseudo_random(salt: str, one: Question) -> Any:
    return LETTERS[hashlib.sha256(f"{salt}{one.id}".encode()).digest()[0] % 4]


def answered(one: Question, letter: Any, **more: Any) -> Answer:
    return Answer(one.id, letter, (-1.0,) * 4 if letter else None, tokens=9, ns=1, **more)


def test_random_letters_on_4000_questions_are_at_chance() -> None:
    asked = questions(4000)
    key = {one.id: pseudo_random("key", one) for one in asked}
    dataset = QuestionSet("random", None, False, "", asked, key)
    metrics = score(dataset, [answered(one, pseudo_random("choice", one)) for one in asked])
    assert metrics["accuracy"] == pytest.approx(0.25, abs=0.014)
    assert metrics["interval"][0] < 0.25 < metrics["interval"][1]
    assert metrics["position"]["total_variation"] < 0.03
    groups = metrics["categories"].values()
    assert sum(one["n"] * one["accuracy"] for one in groups) / 4000 == pytest.approx(
        metrics["accuracy"]
    )
    assert "Other" in metrics["categories"]


def test_a_partial_key_counts_only_what_it_covers() -> None:
    asked = questions(10)
    key: dict[str, Any] = {one.id: "A" for one in asked[:4]} | {"ffffffff": "B"}
    dataset = QuestionSet("partial", None, False, "", asked, key)
    metrics = score(dataset, [answered(one, "A") for one in asked])
    assert (metrics["accuracy"], metrics["n"], metrics["asked"]) == (1.0, 4, 10)
    assert metrics["coverage"] == {"share": 0.4, "key_rows": 5, "key_rows_not_asked": 1}
    nothing = QuestionSet("none", None, False, "", asked, {"ffffffff": "B"})
    metrics = score(nothing, [answered(one, "A") for one in asked])
    assert metrics["accuracy"] is None
    assert metrics["reason"] == "the key has none of these questions"


def test_no_answer_counts_as_wrong_and_is_reported() -> None:
    asked = questions(4)
    key: dict[str, Any] = {one.id: "A" for one in asked}
    answers = [
        answered(asked[0], "A", tie=True),
        answered(asked[1], "", reason="not_finite"),
        answered(asked[2], "", reason="too_long", dropped=3),
        answered(asked[3], "A", dropped=2),
    ]
    metrics = score(QuestionSet("x", None, False, "", asked, key), answers)
    assert metrics["accuracy"] == 0.5
    assert metrics["invalid"] == {"not_finite": 1, "too_long": 1}
    assert (metrics["invalid_rate"], metrics["ties"], metrics["truncated"]) == (0.5, 1, 1)
    assert metrics["position"]["histogram"] == {"A": 2, "B": 0, "C": 0, "D": 0}
    assert position_prior(["", ""])["total_variation"] is None
