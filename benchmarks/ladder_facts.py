"""Invented facts, and four-option questions on them: a synthetic set, not Mobile-MMLU.

A fact joins an invented name to a value of one of four kinds ("the colour of Zorbak" is red).
Each fact is asked once, with three other values of its kind as options.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.prompt import loglik_prompt
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, Question

PERSONS = 512
_WORDS = {
    "colour": "amber azure beige black brown coral cream green ivory lilac olive orange purple "
    "red silver white",
    "dish": "beans bread cake curry figs honey lentils noodles olives pancakes pears pie rice "
    "salad soup stew",
    "town": "Arden Belmont Corby Dover Elgin Fargo Galway Hobart Ipswich Jasper Kendal Lucan "
    "Malmo Nairn Oban Perth",
    "trade": "baker carpenter dentist farmer glazier jeweller lawyer mason nurse painter pilot "
    "potter sailor tailor teacher weaver",
}
VALUES = {kind: tuple(words.split()) for kind, words in _WORDS.items()}


@dataclass(frozen=True)
class Fact:
    """One thing to be learnt."""

    kind: str
    person: str
    value: str

    @property
    def question(self) -> str:
        """Return the question that the value answers."""
        return f"What is the {self.kind} of {self.person}?"


def invented_facts(seed: int) -> list[Fact]:
    """Return one value of each kind for every person; the same seed gives the same facts."""
    rng = random.Random(f"{seed}:facts")
    return [
        Fact(kind, person, rng.choice(values))
        for person in _names(rng, PERSONS)
        for kind, values in VALUES.items()
    ]


def _names(rng: random.Random, count: int) -> list[str]:
    """Return capitalised words of two open syllables and a final consonant, all different."""
    found: dict[str, None] = {}
    while len(found) < count:
        first, second = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
        found[(first + second + rng.choice("knrs")).capitalize()] = None
    return list(found)


def ask(fact: Fact, rng: random.Random, identity: str = "q") -> tuple[Question, str]:
    """Return a question on a fact, its options in random order, and the right letter."""
    others = rng.sample([value for value in VALUES[fact.kind] if value != fact.value], 3)
    return _question(identity, fact.question, fact.kind, [fact.value, *others], rng)


def ask_to_find(kind: str, rng: random.Random) -> tuple[Question, str]:
    """Return a question that names its answer: it teaches where letters are, and no fact."""
    values = rng.sample(VALUES[kind], 4)
    return _question("q", f"Which of these is {values[0]}?", kind, values, rng)


def _question(
    identity: str, text: str, kind: str, values: Sequence[str], rng: random.Random
) -> tuple[Question, str]:
    order = rng.sample(range(4), 4)
    shown = [values[i] for i in order]
    options = (shown[0], shown[1], shown[2], shown[3])
    field = find_field(f"invented_{kind}_facts")
    return Question(identity, text, options, field), LETTERS[order.index(0)]


def prompt_of(question: Question) -> str:
    """Return the suite's own log-likelihood prompt."""
    return loglik_prompt(question).text


def write_questions(folder: Path, facts: Sequence[Fact], seed: int) -> tuple[Path, Path]:
    """Write one CSV file a kind and the key, as a user's own copy of a question set.

    Returns:
        The folder of the questions, and the file of the key.
    """
    rng = random.Random(f"{seed}:questions")
    asked = [ask(fact, rng, f"{index:08x}") for index, fact in enumerate(facts)]
    questions, key = folder / "test", folder / "key.csv"
    questions.mkdir(parents=True, exist_ok=True)
    for kind in VALUES:
        mine = [one for one, _ in asked if one.field == find_field(f"invented_{kind}_facts")]
        rows = [(one.id, one.text, *one.options) for one in mine]
        header = ("question_id", "Question", *LETTERS)
        _write_csv(questions / f"invented_{kind}_facts.csv", header, rows)
    _write_csv(key, ("question_id", "answer"), [(one.id, letter) for one, letter in asked])
    return questions, key


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
