from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.prompt import (
    Prompt,
    cloze_prompt,
    generate_prompt,
    loglik_prompt,
)
from mobilekit.evaluate.suites.mobile_mmlu.questions import Question

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"


@pytest.mark.parametrize("form", [loglik_prompt, generate_prompt, cloze_prompt])
def test_prompts_are_the_golden_bytes(form: Callable[[Question], Prompt]) -> None:
    questions = {q.id: q for q in load_dataset(VECTORS / "fixture_full").questions}
    file = VECTORS / f"{form.__name__}s.json"
    golden = json.loads(file.read_text(encoding="utf-8"))
    assert len(golden) >= 3
    for entry in golden:
        prompt = form(questions[entry["question_id"]])
        assert prompt.text.encode() == entry["prompt"].encode()


@given(st.text(), st.tuples(st.text(), st.text(), st.text(), st.text()))
def test_the_parts_of_a_prompt_are_the_question(
    text: str, options: tuple[str, str, str, str]
) -> None:
    prompt = loglik_prompt(Question("1", text, options, find_field("online_privacy")))
    intro = "The following are multiple choice questions (with answers) about online privacy.\n\n"
    assert prompt.head.startswith(intro)
    assert prompt.head[len(intro) : -1] == text.strip()
    a, b, c, d = options
    assert prompt.options == f"A. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"


def test_the_official_prompt_is_the_golden_bytes() -> None:
    question = next(
        q for q in load_dataset(VECTORS / "fixture_full").questions if q.id == "037881fe"
    )
    golden = (
        b"Answer the following multiple choice question and provide only letter of the correct "
        b"answer.\n"
        b"The pressure falls fast and wind grows. What is most likely?\n"
        b"Assume mid-latitudes.\n"
        b"A. Worse weather within a day\n"
        b"B. A week of clear skies\n"
        b"C. No change at all\n"
        b"D. Sudden frost in any season\n"
        b"Answer\xef\xbc\x9a\n"
    )
    assert generate_prompt(question).text.encode() == golden


def test_the_official_prompt_strips_the_question_and_nothing_else() -> None:
    question = Question("1", "  Why? \n", (" a", "b ", "", "d"), find_field("law"))
    assert generate_prompt(question).text.splitlines()[1:] == [
        "Why?",
        "A.  a",
        "B. b ",
        "C. ",
        "D. d",
        "Answer\uff1a",
    ]


def test_the_cloze_prompt_lists_no_option() -> None:
    question = load_dataset(VECTORS / "fixture_full").questions[0]
    assert cloze_prompt(question).text.encode() == (
        b"The following are questions (with answers) about accounting.\n\n"
        b"Question: Cash 300, inventory 200, loans 150. What is the equity?\nAnswer:"
    )
    assert cloze_prompt(question).options == "\nAnswer:"
