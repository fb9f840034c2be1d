"""Options in other orders: what a position-bound and what a content-bound model give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu.answers import Answer
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.orders import IN_FILE_ORDER, in_file, orders, reordered
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, Question
from mobilekit.evaluate.suites.mobile_mmlu.robustness import order_metrics
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.runtime.torch import TorchRuntime

from .conftest import same_metrics

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
FULL, KEY = VECTORS / "fixture_full", VECTORS / "fixture_key.csv"
MANY = pytest.mark.parametrize("rotations", [4, 24])


def test_orders_begin_with_the_files_own() -> None:
    assert orders(1) == ("ABCD",)
    assert orders(4) == ("ABCD", "BCDA", "CDAB", "DABC")
    assert orders(24)[0] == "ABCD"
    assert len(set(orders(24))) == 24
    assert set(orders(4)) <= set(orders(24))


@given(st.sampled_from(orders(24)), st.sampled_from(LETTERS))
def test_a_letter_shown_is_the_files_letter_of_the_same_text(order: str, shown: str) -> None:
    question = Question("1", "?", ("a", "b", "c", "d"), find_field("law"))
    text = reordered(question, order).options[LETTERS.index(shown)]  # type: ignore[arg-type]
    assert question.options[LETTERS.index(in_file(shown, order))] == text  # type: ignore[arg-type]
    assert in_file("", order) == ""


def right_option() -> dict[str, str]:
    """The text of the right option, by the question's text."""
    dataset = load_dataset(FULL, KEY)
    assert dataset.key is not None
    return {q.text: q.options[LETTERS.index(dataset.key[q.id])] for q in dataset.questions}


def knowing(planted: Any, tokenizer: TextTokenizer) -> Any:
    """A runtime that finds the right option wherever it stands."""
    known = right_option()

    def choose(text: str) -> dict[str, float]:
        option = next(value for question, value in known.items() if question in text)
        letter = next(one for one in LETTERS if f"{one}. {option}\n" in text)
        return {f" {letter}": 3.0}

    return planted(tokenizer, choose)


@MANY
@pytest.mark.parametrize("letter", LETTERS)
def test_a_constant_letter_follows_the_position(
    planted: Any, tokenizer: TextTokenizer, letter: str, rotations: int
) -> None:
    runtime = planted(tokenizer, lambda text: {f" {letter}": 1.0})
    outcome = mobile_mmlu(runtime, tokenizer, FULL, key=KEY, rotations=rotations)
    order = outcome.metrics["order"]
    assert (order["rotations"], order["consistency"]) == (rotations, 0)
    assert (order["acc_mean"], order["acc_worst"]) == (0.25, 0)
    assert order["position_prior"]["total_variation"] == 0.75
    assert order["position_prior"]["histogram"][letter] == 12 * rotations
    assert set(outcome.letters.values()) == {letter}  # the file's order
    assert outcome.workload.repetitions == len(outcome.samples) == 12 * rotations


@MANY
def test_a_model_that_knows_follows_the_content(
    planted: Any, tokenizer: TextTokenizer, rotations: int
) -> None:
    runtime = knowing(planted, tokenizer)
    outcome = mobile_mmlu(runtime, tokenizer, FULL, key=KEY, rotations=rotations)
    order = outcome.metrics["order"]
    assert (order["acc_mean"], order["acc_worst"], order["consistency"]) == (1, 1, 1)
    assert order["position_prior"]["total_variation"] == 0
    key = load_dataset(FULL, KEY).key
    assert outcome.letters == key
    assert order["letters"] == {name: letter * rotations for name, letter in (key or {}).items()}


def test_without_a_key_steadiness_is_still_known(planted: Any, tokenizer: TextTokenizer) -> None:
    order = mobile_mmlu(knowing(planted, tokenizer), tokenizer, FULL, rotations=4).metrics["order"]
    assert (order["acc_mean"], order["acc_worst"]) == (None, None)
    assert order["reason"] == "no answer key was given"
    assert order["consistency"] == 1
    assert sum(order["position_prior"]["histogram"].values()) == 48


def test_one_order_tells_nothing_about_orders(planted: Any, tokenizer: TextTokenizer) -> None:
    order = mobile_mmlu(knowing(planted, tokenizer), tokenizer, FULL, key=KEY).metrics["order"]
    assert order["rotations"] == 1
    assert order["consistency"] is None
    assert order["reason"] == "one order was asked"


def test_figures_by_hand() -> None:
    def answers(name: str, shown: str) -> list[Answer]:
        return [
            Answer(name, letter if letter in LETTERS else "", None, 1, 1, order=order)
            for letter, order in zip(shown, orders(4), strict=True)
        ]

    # by content: AAAA (right), ABCD (once right), BB-B (never steady nor right)
    given = [*answers("1", "ADCB"), *answers("2", "AAAA"), *answers("3", "BA-C")]
    found = order_metrics(given, {"1": "A", "2": "A", "3": "C"}, 4)
    assert found["letters"] == {"1": "AAAA", "2": "ABCD", "3": "BB-B"}
    assert found["acc_mean"] == pytest.approx(5 / 12)
    assert found["acc_worst"] == pytest.approx(1 / 3)
    assert found["consistency"] == pytest.approx(1 / 3)
    assert found["position_prior"]["histogram"] == {"A": 6, "B": 2, "C": 2, "D": 1}
    partial = order_metrics(given, {"1": "A"}, 4)
    assert (partial["acc_mean"], partial["consistency"]) == (1, pytest.approx(1 / 3))
    assert order_metrics(given, {"9": "A"}, 4)["reason"] == "the key has none of these questions"


def test_a_run_goes_on_in_the_middle_of_a_question(
    runtime: TorchRuntime, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    left = 6

    def stop(amount: float = 1, note: str = "") -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    log = tmp_path / "answers.jsonl"
    settings = {"key": KEY, "rotations": 4, "resume_file": log}
    whole = mobile_mmlu(runtime, tokenizer, FULL, key=KEY, rotations=4)
    with pytest.raises(Stopped):
        mobile_mmlu(runtime, tokenizer, FULL, progress=stop, **settings)  # type: ignore[arg-type]
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]]
    assert len({(line["id"], line["order"]) for line in lines}) == len(lines) == 6
    seen: list[float] = []
    resumed = mobile_mmlu(
        runtime,
        tokenizer,
        FULL,
        progress=lambda amount=1, note="": seen.append(amount),  # type: ignore[misc]
        **settings,  # type: ignore[arg-type]
    )
    assert same_metrics(resumed, whole)
    assert (seen[0], sum(seen)) == (6, 48)
    with pytest.raises(InvalidInputError, match="another run"):
        mobile_mmlu(runtime, tokenizer, FULL, key=KEY, rotations=1, resume_file=log)


def test_the_files_order_is_the_run_without_rotations(
    runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    plain = mobile_mmlu(runtime, tokenizer, FULL, key=KEY)
    turned = mobile_mmlu(runtime, tokenizer, FULL, key=KEY, rotations=4)
    assert turned.letters == plain.letters
    assert same_metrics(turned, plain, but=("order",))


@pytest.mark.parametrize("rotations", [0, 2, 23])
def test_other_numbers_of_orders_are_refused(
    runtime: TorchRuntime, tokenizer: TextTokenizer, rotations: int
) -> None:
    with pytest.raises(InvalidInputError, match="rotations"):
        mobile_mmlu(runtime, tokenizer, FULL, rotations=rotations)
    assert IN_FILE_ORDER == "ABCD"
