"""What counts as an answer in the text of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilekit.evaluate.suites.mobile_mmlu.parse import parse_letter
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
TABLE = json.loads((VECTORS / "letters.json").read_text(encoding="utf-8"))  # the apps' table, too


def test_the_table_is_large_enough() -> None:
    assert len({one["text"] for one in TABLE}) == len(TABLE) >= 50
    assert {one["letter"] for one in TABLE} == {*LETTERS, ""}
    assert {one["reason"] for one in TABLE} == {None, "no_text", "no_letter", "several_letters"}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row["text"]))
def test_a_text_of_the_table(row: dict[str, Any]) -> None:
    assert parse_letter(row["text"]) == (row["letter"], row["reason"])


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
