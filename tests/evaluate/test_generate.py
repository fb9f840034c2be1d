"""The official way of asking, against transformers' own greedy generation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu.answers import Answer, Ask
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.generate import NEW_TOKENS, GenerateScorer
from mobilekit.evaluate.suites.mobile_mmlu.parse import parse_letter
from mobilekit.evaluate.suites.mobile_mmlu.prompt import generate_prompt
from mobilekit.evaluate.suites.mobile_mmlu.questions import Question
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.runtime.torch import TorchRuntime

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
QUESTION = Question("1", "Which one?", ("one", "two", "three", "four"), find_field("law"))
END = "<|end|>"


def writing(*pieces: str) -> Callable[[str], dict[str, float]]:
    """Choose logits so that a model writes these one-token pieces, then the end of the text."""

    def choose(text: str) -> dict[str, float]:
        written = text.partition("Answer\uff1a\n")[2]
        for count in range(len(pieces)):
            if written == "".join(pieces[:count]):
                return {pieces[count]: 5.0}
        return {END: 5.0}

    return choose


def asked(scorer: GenerateScorer, question: Question = QUESTION) -> Answer:
    (answer,) = scorer.answers([Ask(question)])
    return answer


@pytest.mark.parametrize(
    ("pieces", "letter", "reason"),
    [
        (["B"], "B", None),
        (["(", "D", ")"], "D", None),
        ([" C", "."], "C", None),
        ([], "", "no_text"),
        (["n", "o"], "", "no_letter"),
        (["A", "/", "B"], "", "several_letters"),
        (["w", "e", "l", "l", ":", "B"], "", "no_letter"),  # the sixth token is not asked for
    ],
)
def test_the_letter_of_what_is_written(
    planted: Any, tokenizer: TextTokenizer, pieces: list[str], letter: str, reason: str | None
) -> None:
    runtime = planted(tokenizer, writing(*pieces))
    answer = asked(GenerateScorer(runtime, tokenizer))
    assert (answer.letter, answer.reason, answer.logprobs) == (letter, reason, None)
    assert len(runtime.calls) == min(len(pieces) + 1, NEW_TOKENS)
    assert runtime.calls[0] == (answer.tokens, 0)


def test_it_writes_what_transformers_generates(
    model: Qwen3ForCausalLM, tokenizer: TextTokenizer
) -> None:
    scorer = GenerateScorer(TorchRuntime(model), tokenizer)
    for question in load_dataset(VECTORS / "fixture_full").questions:
        ids = torch.tensor([tokenizer.encode(generate_prompt(question).text)[-508:]])
        new = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
        )[0, ids.shape[1] :]
        answer = asked(scorer, question)
        assert (answer.letter, answer.reason) == parse_letter(tokenizer.decode(new.tolist()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_no_letter(
    planted: Any, tokenizer: TextTokenizer, value: float
) -> None:
    runtime = planted(tokenizer, lambda text: {"z": value, "B": 1.0})
    assert asked(GenerateScorer(runtime, tokenizer)).reason == "not_finite"


def test_a_long_prompt_loses_its_head_and_leaves_room_for_five_tokens(
    planted: Any, tokenizer: TextTokenizer
) -> None:
    long = Question("1", "start " + "filler " * 50 + "end?", QUESTION.options, QUESTION.field)
    whole = tokenizer.encode(generate_prompt(long).text)
    runtime = planted(tokenizer, writing("B", "e", "c", "a", "u"), context_length=120)
    answer = asked(GenerateScorer(runtime, tokenizer), long)  # the runtime asserts its bound
    assert answer.tokens == 120 - (NEW_TOKENS - 1)
    assert answer.dropped == len(whole) - answer.tokens
    assert answer.letter == ""  # "Becau" is a word
    short = planted(tokenizer, writing("B"), context_length=30)
    assert asked(GenerateScorer(short, tokenizer)).reason == "too_long"
    assert short.calls == []


def test_reasons_are_counted_and_every_invalid_answer_is_wrong(
    planted: Any, tokenizer: TextTokenizer
) -> None:
    outcome = mobile_mmlu(
        planted(tokenizer, writing()),
        tokenizer,
        VECTORS / "fixture_full",
        key=VECTORS / "fixture_key.csv",
        scorer="generate",
    )
    assert outcome.metrics["invalid"] == {"no_text": 12}
    assert (outcome.metrics["invalid_rate"], outcome.metrics["accuracy"]) == (1.0, 0.0)
    assert outcome.metrics["logprobs"] == {}
    assert outcome.metrics["new_tokens"] == NEW_TOKENS
    assert outcome.workload.settings["prompt_version"] == 1


def test_a_tokenizer_of_another_model_is_refused(planted: Any, tokenizer: TextTokenizer) -> None:
    runtime = planted(tokenizer, writing("B"))
    runtime.vocab_size = 40
    with pytest.raises(InvalidInputError, match="but the model has 40 tokens"):
        asked(GenerateScorer(runtime, tokenizer))
