"""Invented facts, and four-option questions on them: a synthetic set, not Mobile-MMLU.

A fact joins an invented name to a value of one of four kinds ("the colour of Zorbak" is red).
Each fact is asked once, with three other values of its kind as options, in alphabetical order.
So the letter of an answer goes with its place in the alphabet: who knows all facts, but does not
read the options, is right in 66 % of the questions (``blind_share``), and nobody who does not know
them is right in more than about 25 %.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.prompt import loglik_prompt
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, Question

PERSONS = 512
_WORDS = {
    "colour": "amber brown coral green ivory lilac olive white",
    "dish": "bread curry figs honey noodles pancakes rice stew",
    "town": "Arden Corby Elgin Galway Hobart Kendal Malmo Perth",
    "trade": "baker dentist farmer lawyer mason painter sailor teacher",
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
    """Return a question on a fact, its options in alphabetical order, and the right letter."""
    others = rng.sample([value for value in VALUES[fact.kind] if value != fact.value], 3)
    shown = sorted([fact.value, *others])
    options = (shown[0], shown[1], shown[2], shown[3])
    field = find_field(f"invented_{fact.kind}_facts")
    question = Question(identity, fact.question, options, field)
    return question, LETTERS[shown.index(fact.value)]


def blind_share() -> float:
    """Return the best share of right letters for who knows every value and reads no option."""
    best = []
    for values in VALUES.values():
        for rank in range(len(values)):
            ways = [math.comb(rank, k) * math.comb(len(values) - 1 - rank, 3 - k) for k in range(4)]
            best.append(max(ways) / sum(ways))
    return sum(best) / len(best)


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
