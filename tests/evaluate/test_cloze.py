"""Continuations by the options' full texts, against one full forward pass an option."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen3ForCausalLM

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer, load_tokenizer
from mobilekit.evaluate.config import MobileMMLUConfig
from mobilekit.evaluate.suites.mobile_mmlu.answers import Answer, Ask
from mobilekit.evaluate.suites.mobile_mmlu.cloze import ClozeScorer, cloze_metrics
from mobilekit.evaluate.suites.mobile_mmlu.dataset import QuestionSet, load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.prompt import cloze_prompt
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, Question
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.runtime.base import Cursor
from mobilekit.runtime.torch import TorchRuntime

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
SHORT = Question("1", "Which?", ("one", "seven", "x", "nine"), find_field("law"))


def brute_force(model: Any, prompt: list[int], text: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + text]), use_cache=False).logits[0]
    rows = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
    return float(rows[range(len(text)), text].sum())


def answered(scorer: ClozeScorer, question: Question = SHORT) -> Answer:
    (answer,) = scorer.answers([Ask(question)])
    return answer


def test_both_ways_equal_a_full_forward_for_each_option(
    model: Qwen3ForCausalLM, tokenizer: TextTokenizer, last_only: Any
) -> None:
    whole = TorchRuntime(model)
    for question in load_dataset(VECTORS / "fixture_full").questions[:6]:
        prompt = tokenizer.encode(cloze_prompt(question).text)
        texts = [tokenizer.encode(f" {option}") for option in question.options]
        expected = [brute_force(model, prompt, text) for text in texts]
        for runtime, way in ((whole, "full"), (last_only(TorchRuntime(model)), "step")):
            scorer = ClozeScorer(runtime, tokenizer)
            answer = answered(scorer, question)
            assert scorer.record() == {"logits": way}
            assert answer.logprobs == pytest.approx(expected, abs=1e-4)
            assert answer.letter == LETTERS[int(np.argmax(expected))]
            assert answer.tokens == len(prompt)


def test_a_running_state_is_given_the_prompt_again(
    tiny: Callable[[str], nn.Module], byte_tokenizer: Path, last_only: Any
) -> None:
    model = tiny("mamba2")
    tokenizer = load_tokenizer(byte_tokenizer)
    prompt = tokenizer.encode(cloze_prompt(SHORT).text)
    expected = [brute_force(model, prompt, tokenizer.encode(f" {o}")) for o in SHORT.options]
    runtime = last_only(TorchRuntime(model))
    prefills: list[int] = []
    reset = runtime.reset
    runtime.reset = lambda: prefills.append(1) or reset()
    scorer = ClozeScorer(runtime, tokenizer)
    assert answered(scorer).logprobs == pytest.approx(expected, abs=1e-4)
    assert len(prefills) == len(LETTERS)
    assert answered(scorer).logprobs == pytest.approx(expected, abs=1e-4)


def test_a_cache_goes_back_to_the_end_of_the_prompt(planted: Any, tokenizer: TextTokenizer) -> None:
    runtime = planted(tokenizer, lambda text: {})
    answered(ClozeScorer(runtime, tokenizer))  # it does not say that it can go back
    assert sum(position == 0 for _, position in runtime.calls) == len(LETTERS)
    runtime.cursor = Cursor(vocab_size=runtime.vocab_size, context_length=runtime.context_length)
    runtime.calls.clear()
    tokens = answered(ClozeScorer(runtime, tokenizer)).tokens
    prompts = [call for call in runtime.calls if call[1] == 0]
    assert prompts == [(tokens, 0)]
    lengths = [len(tokenizer.encode(f" {option}")) for option in SHORT.options]
    assert len(runtime.calls) == 1 + sum(length - 1 for length in lengths)


def test_lengths_decide_between_the_three_metrics() -> None:
    options = ("é" * 4, "abcd", "abcdefgh", "")
    question = Question("1", "?", options, find_field("law"))
    dataset = QuestionSet("x", None, False, "", (question,), {"1": "C"})
    answer = Answer("1", "B", (-7.0, -5.0, -9.0, -6.0), tokens=9, ns=1)
    metrics = cloze_metrics(dataset, [answer])
    # by characters: -1.75, -1.25, -1.125; by bytes: -0.875, -1.25, -1.125; the empty one is never
    assert [metrics[name]["letters"]["1"] for name in ("acc", "acc_norm", "acc_bytes")] == [
        "B",
        "C",
        "A",
    ]
    assert [metrics[name]["accuracy"] for name in ("acc", "acc_norm", "acc_bytes")] == [0, 1, 0]
    assert metrics["acc_norm"]["n"] == 1
    unknown = QuestionSet("x", None, False, "", (question,), None)
    assert cloze_metrics(unknown, [answer])["acc_norm"]["accuracy"] is None
    invalid = Answer("1", "", None, tokens=9, ns=1, reason="not_finite")
    assert cloze_metrics(dataset, [invalid])["acc"]["letters"] == {"1": ""}


def test_the_letters_of_the_result_are_those_of_acc(
    runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    outcome = mobile_mmlu(
        runtime,
        tokenizer,
        VECTORS / "fixture_full",
        key=VECTORS / "fixture_key.csv",
        scorer="cloze",
    )
    cloze = outcome.metrics["cloze"]
    assert outcome.letters == cloze["acc"]["letters"]
    assert outcome.metrics["accuracy"] == cloze["acc"]["accuracy"]
    assert set(cloze) == {"acc", "acc_norm", "acc_bytes"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_no_letter(
    planted: Any, tokenizer: TextTokenizer, value: float
) -> None:
    runtime = planted(tokenizer, lambda text: {"z": value} if text.endswith("sev") else {})
    assert answered(ClozeScorer(runtime, tokenizer)).reason == "not_finite"


def test_a_long_question_loses_its_head_and_never_an_option(
    planted: Any, tokenizer: TextTokenizer
) -> None:
    long = Question("1", "start " + "filler " * 50 + "end?", SHORT.options, SHORT.field)
    runtime = planted(tokenizer, lambda text: {}, context_length=60)
    answer = answered(ClozeScorer(runtime, tokenizer), long)  # the runtime asserts its bound
    longest = max(len(tokenizer.encode(f" {option}")) for option in SHORT.options)
    assert answer.tokens == 60 - (longest - 1)
    assert answer.dropped > 0
    wide = Question("1", "?", ("one", "two", "three", "x" * 70), SHORT.field)
    assert answered(ClozeScorer(runtime, tokenizer), wide).reason == "too_long"


def test_a_tie_goes_to_the_lowest_letter(planted: Any, tokenizer: TextTokenizer) -> None:
    same = Question("1", "?", ("abc", "abc", "abcd", "abcde"), SHORT.field)
    answer = answered(ClozeScorer(planted(tokenizer, lambda text: {}), tokenizer), same)
    assert (answer.letter, answer.tie) == ("A", True)


def test_orders_of_options_that_are_not_listed_are_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        MobileMMLUConfig.parse({"scorer": "cloze", "rotations": 4}, "suite")
    assert "rotations 1 with scorer 'cloze'" in str(caught.value)
