"""The questions of our own: complete, balanced, and no giveaway in form."""

from __future__ import annotations

import hashlib
from collections import Counter

from mobilekit.evaluate.suites.mobile_mmlu.dataset import SAMPLE_NAME, load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import field_table
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS

SAMPLE = load_dataset("sample")
KEY = dict(SAMPLE.key or {})


def test_one_question_for_each_field() -> None:
    names = [field.name for field in field_table()]
    assert [question.field.name for question in SAMPLE.questions] == names
    assert set(KEY) == {question.id for question in SAMPLE.questions}


def test_it_is_not_called_mobile_mmlu() -> None:
    record = SAMPLE.record()
    assert record["name"] == SAMPLE_NAME
    assert record["licence"] == "CC0-1.0"
    assert record["is_mobile_mmlu"] is False
    assert "mmlu" not in SAMPLE_NAME.lower()


def test_ids_follow_from_the_fields() -> None:
    for question in SAMPLE.questions:
        digest = hashlib.sha256(f"{SAMPLE_NAME}:{question.field.name}".encode()).hexdigest()
        assert question.id == digest[:8]


def test_each_letter_is_right_twenty_times_and_in_no_pattern() -> None:
    letters = "".join(KEY[question.id] for question in SAMPLE.questions)
    assert Counter(letters) == dict.fromkeys(LETTERS, 20)
    assert "".join(LETTERS) * 3 not in letters
    assert all(letter * 6 not in letters for letter in LETTERS)


def test_length_gives_nothing_away() -> None:
    extremes = {max: 0.0, min: 0.0}
    for question in SAMPLE.questions:
        lengths = [len(option) for option in question.options]
        right = lengths[LETTERS.index(KEY[question.id])]
        for pick in extremes:
            # where several options are equally long, a guesser picks one of them
            extremes[pick] += (right == pick(lengths)) / lengths.count(pick(lengths))
    for guessed in extremes.values():
        assert 0.10 <= guessed / len(SAMPLE.questions) <= 0.40


def test_questions_and_options_are_tidy() -> None:
    texts = [question.text for question in SAMPLE.questions]
    assert len(set(texts)) == len(texts)
    for question in SAMPLE.questions:
        for text in (question.text, *question.options):
            assert text == " ".join(text.split())
        assert len({option[-1] == "." for option in question.options}) == 1
        assert len(question.text) < 200
