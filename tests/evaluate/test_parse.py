"""What counts as an answer in the text of a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.evaluate.suites.mobile_mmlu.parse import parse_letter
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS

ANSWERS = {
    "A": "A",
    " B\n": "B",
    "C.": "C",
    "D)": "D",
    "(D)": "D",
    "[B]": "B",
    "**C**": "C",
    "**C": "C",
    "`A`": "A",
    '"D"': "D",
    "- B": "B",
    "A. Wash hands": "A",
    "A: the first": "A",
    "B - because": "B",
    "D\n\nExplanation: A": "D",
    "b": "b".upper(),
    "(c).": "C",
    "Ａ": "A",
    "（Ｂ）": "B",
    "答案：B": "B",
    "选C": "C",
    "B。": "B",
    "Answer: C": "C",
    "The answer is B": "B",
    "The correct answer is: **D**": "D",
    "The correct option is (A)": "A",
    "A good choice is B": "B",
    "A better answer is option D": "D",
    "Option C": "C",
    "I think B": "B",
    "B is correct": "B",
    "A is correct": "A",
    "C, because C fits": "C",
    "Option A fails; the answer is B": "B",
    "<think>A or B?</think>\n\nC": "C",
    "</think>D": "D",
    "\\boxed{B}": "B",
    "<b>C</b>": "C",
    "$D$": "D",
}
NOTHINGS = {
    "": "no_text",
    " \n\t": "no_text",
    "</think>": "no_text",
    "E": "no_letter",
    "A good choice": "no_letter",
    "a good choice": "no_letter",
    "None of them": "no_letter",
    "Apples": "no_letter",
    "I don't know": "no_letter",
    "The answer is not B": "no_letter",
    "<think>\nA": "no_letter",
    "1": "no_letter",
    "ABCD": "no_letter",
    "D'accord": "no_letter",
    "A or B": "several_letters",
    "A and B": "several_letters",
    "A, B": "several_letters",
    "A/B": "several_letters",
    "B is wrong, C is right": "several_letters",
    "A B C D": "several_letters",
    "The answer is A. The answer is C": "several_letters",
}


def test_the_table_is_large_enough() -> None:
    assert len(ANSWERS) + len(NOTHINGS) >= 50
    assert set(ANSWERS.values()) == set(LETTERS)


@pytest.mark.parametrize(("text", "letter"), ANSWERS.items())
def test_texts_with_an_answer(text: str, letter: str) -> None:
    assert parse_letter(text) == (letter, None)


@pytest.mark.parametrize(("text", "reason"), NOTHINGS.items())
def test_texts_without_one(text: str, reason: str) -> None:
    assert parse_letter(text) == ("", reason)


texts = st.text() | st.text("ABCDabcd ().*:answer is</think>\n'’-", max_size=40)


@given(texts)
def test_any_text_gives_a_letter_or_a_reason(text: str) -> None:
    letter, reason = parse_letter(text)
    assert (letter in LETTERS) == (reason is None)
    assert letter in {*LETTERS, ""}
    if letter:
        assert letter in text.upper() or any(ord(one) > 127 for one in text)


@given(texts, st.sampled_from(LETTERS))
def test_what_was_thought_before_does_not_count(thought: str, letter: str) -> None:
    assert parse_letter(f"{thought}</think>\n\n{letter}") == (letter, None)


@given(st.sampled_from(LETTERS), st.sampled_from(["", ".", ")", ":", "\n", "**", "\nB", ". A B"]))
def test_a_leading_letter_wins(letter: str, rest: str) -> None:
    assert parse_letter(f"{letter}{rest}") == (letter, None)
