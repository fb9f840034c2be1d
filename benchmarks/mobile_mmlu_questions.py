"""Invented multiple-choice prompts of the lengths that Mobile-MMLU has, the same every time."""

from __future__ import annotations

import math
import random
from itertools import cycle, islice

from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.prompt import loglik_prompt

SHORTEST, LONGEST = 100, 600  # tokens, as the published set's prompts roughly are

_WHO = ("A student", "A nurse", "A gardener", "A driver", "A teacher", "A cook", "A tourist")
_WHEN = ("on Monday morning", "after lunch", "late in the evening", "during a train ride")
_DOES = ("opens a note", "checks the battery", "reads a long message", "compares two offers")
_WHY = ("because a friend asked for help", "to plan the next week", "before leaving the house")
_THEN = (
    "The screen shows {n} entries, and {m} of them are new.",
    "It takes {n} minutes, which is {m} minutes more than the last time.",
    "There are {n} ways to do it, but only {m} of them work without a connection.",
    "Somebody else wrote down {n} steps and then crossed out {m} of them.",
)


def prompts(count: int, tokenizer: TextTokenizer, *, seed: int = 0) -> list[str]:
    """Return prompts in the form of the log-likelihood scorer.

    Each is a question of the sample that ships, behind an invented scenario that makes it as
    long as a length drawn log-uniformly from 100 to 600 tokens; longer questions stay as they are.

    Args:
        count: How many; the sample's questions come again, behind other scenarios, as needed.
        tokenizer: What counts the tokens.
        seed: Of the scenarios and the lengths.
    """
    generator = random.Random(seed)
    found = []
    for question in islice(cycle(load_dataset("sample").questions), count):
        head, options = loglik_prompt(question)
        subject, text = head.split("\n\n", 1)
        wanted = math.exp(generator.uniform(math.log(SHORTEST), math.log(LONGEST)))
        scenario: list[str] = []
        while True:
            told = f"{subject}\n\n{' '.join([*scenario, text])}{options}"
            if len(tokenizer.encode(told)) >= wanted:
                break
            scenario.append(_sentences(generator))
        found.append(told)
    return found


def _sentences(generator: random.Random) -> str:
    who, when, does, why = map(generator.choice, (_WHO, _WHEN, _DOES, _WHY))
    then = generator.choice(_THEN).format(n=generator.randint(10, 99), m=generator.randint(2, 9))
    return f"{who} {does} {when} {why}. {then}"
