from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.suites.mobile_mmlu import loglik
from mobilekit.evaluate.suites.mobile_mmlu.answers import Answer, Ask, Scorer, fit
from mobilekit.evaluate.suites.mobile_mmlu.dataset import load_dataset
from mobilekit.evaluate.suites.mobile_mmlu.fields import find_field
from mobilekit.evaluate.suites.mobile_mmlu.letters import letter_tokens
from mobilekit.evaluate.suites.mobile_mmlu.loglik import LoglikScorer
from mobilekit.evaluate.suites.mobile_mmlu.prompt import loglik_prompt
from mobilekit.evaluate.suites.mobile_mmlu.questions import LETTERS, Question
from mobilekit.runtime.torch import TorchRuntime

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
QUESTION = Question("1", "Which one?", ("one", "two", "three", "four"), find_field("law"))


def only(scorer: Scorer, question: Question) -> Answer:
    (answer,) = scorer.answers([Ask(question)])
    return answer


def brute_force(model: Qwen3ForCausalLM, prompt: list[int], continuation: list[int]) -> float:
    """Sum the log-probabilities of a continuation out of one full forward pass, in float64."""
    ids = torch.tensor([prompt + continuation])
    with torch.no_grad():
        rows = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    wanted = range(len(prompt), len(prompt) + len(continuation))
    return float(sum(rows[i - 1, ids[0, i]] for i in wanted))


# " A" and " B" share their first token with each other, but not with " C", which has one token
SPELLINGS: dict[str, list[tuple[str, str]]] = {
    "one token": [("Ġ", letter) for letter in "ABCD"],
    "two tokens": [],
    "one and two": [("Ġ", "C"), ("Ġ", "D")],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_logprobs_equal_a_full_forward_for_each_choice(
    make_tokenizer: Callable[..., TextTokenizer],
    model: Qwen3ForCausalLM,
    runtime: TorchRuntime,
    spelling: str,
) -> None:
    tokenizer = make_tokenizer(SPELLINGS[spelling])
    scorer = LoglikScorer(runtime, tokenizer)
    for question in load_dataset(VECTORS / "fixture_full").questions:
        answer = only(scorer, question)
        prompt = tokenizer.encode(loglik_prompt(question).text)
        expected = [
            brute_force(model, prompt, tokenizer.encode(f" {letter}")) for letter in LETTERS
        ]
        assert answer.logprobs == pytest.approx(expected, abs=1e-5)
        assert answer.letter == LETTERS[int(np.argmax(expected))]
        assert answer.tokens == len(prompt)
        assert answer.ns > 0


def test_long_spellings_go_back_and_forth_in_the_cache(
    make_tokenizer: Callable[..., TextTokenizer], model: Qwen3ForCausalLM
) -> None:
    """Letters of three tokens that part, join and part again."""
    tokenizer = make_tokenizer([])
    scorer = LoglikScorer(TorchRuntime(model), tokenizer)
    ids = ((5, 6, 7), (5, 6, 8, 9), (1, 6, 7), (5, 2, 3))
    scorer.letters = type(scorer.letters)(ids, ids)
    prompt = tokenizer.encode(loglik_prompt(QUESTION).text)
    expected = [brute_force(model, prompt, list(one)) for one in ids]
    assert only(scorer, QUESTION).logprobs == pytest.approx(expected, abs=1e-5)


def test_one_token_letters_take_one_prefill(planted: Any, tokenizer: TextTokenizer) -> None:
    runtime = planted(tokenizer, lambda text: {" B": 2.0})
    answer = only(LoglikScorer(runtime, tokenizer), QUESTION)
    assert answer.letter == "B"
    assert runtime.calls == [(answer.tokens, 0)]
    assert answer.logprobs is not None
    assert answer.logprobs[1] - answer.logprobs[0] == pytest.approx(2.0)


def test_a_shared_first_token_is_decoded_once(planted: Any, plain_tokenizer: TextTokenizer) -> None:
    runtime = planted(plain_tokenizer, lambda text: {"D": 1.0} if text.endswith(" ") else {})
    answer = only(LoglikScorer(runtime, plain_tokenizer), QUESTION)
    assert answer.letter == "D"
    assert runtime.calls == [(answer.tokens, 0), (1, answer.tokens)]


def test_ties_go_to_the_lowest_letter_and_are_marked(
    planted: Any, tokenizer: TextTokenizer
) -> None:
    scorer = LoglikScorer(planted(tokenizer, lambda text: {" B": 1.0, " D": 1.0}), tokenizer)
    answer = only(scorer, QUESTION)
    assert (answer.letter, answer.tie) == ("B", True)
    scorer = LoglikScorer(planted(tokenizer, lambda text: {" D": 1.0}), tokenizer)
    assert not only(scorer, QUESTION).tie  # A, B and C are equal, but none of them was chosen


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_no_letter(
    planted: Any, tokenizer: TextTokenizer, value: float
) -> None:
    scorer = LoglikScorer(planted(tokenizer, lambda text: {"z": value, " A": 1.0}), tokenizer)
    answer = only(scorer, QUESTION)
    assert (answer.letter, answer.logprobs, answer.reason) == ("", None, "not_finite")


def test_a_long_prompt_loses_its_head_and_never_the_options(
    planted: Any, tokenizer: TextTokenizer
) -> None:
    long = Question("1", "start " + "filler " * 50 + "end?", QUESTION.options, QUESTION.field)
    whole = tokenizer.encode(loglik_prompt(long).text)
    runtime = planted(tokenizer, lambda text: {" C": 1.0}, context_length=120)
    answer = only(LoglikScorer(runtime, tokenizer), long)
    assert answer.letter == "C"
    assert answer.tokens == 120
    assert answer.dropped == len(whole) - 120
    assert runtime.ids == whole[-120:]
    assert tokenizer.decode(runtime.ids).endswith(loglik_prompt(long).options)


def test_options_that_do_not_fit_give_no_letter(planted: Any, tokenizer: TextTokenizer) -> None:
    prompt = loglik_prompt(QUESTION)
    least = len(tokenizer.encode(prompt.options))
    for room, letter in ((least, "A"), (least - 1, "")):
        runtime = planted(tokenizer, lambda text: {" A": 1.0}, context_length=room)
        answer = only(LoglikScorer(runtime, tokenizer), QUESTION)
        assert answer.letter == letter
    assert answer.reason == "too_long"
    assert runtime.calls == []


def test_room_is_left_for_decoding_the_letters(
    model: Qwen3ForCausalLM, plain_tokenizer: TextTokenizer, last_only: Any
) -> None:
    length = len(plain_tokenizer.encode(loglik_prompt(QUESTION).text))
    runtime = last_only(TorchRuntime(model), context_length=length)  # asserts the bound itself
    answer = only(LoglikScorer(runtime, plain_tokenizer), QUESTION)
    assert (answer.dropped, answer.tokens) == (1, length - 1)


def test_cutting_keeps_whole_tokens() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[UNK]": 0, "Answer:": 1}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    prompt = loglik_prompt(QUESTION)
    words = len(prompt.text.split())
    ids, dropped = fit(prompt, TextTokenizer(inner), words - 3)
    assert ids is not None
    assert (len(ids), dropped) == (words - 3, 3)
    head_words = len(prompt.head.split())
    assert fit(prompt, TextTokenizer(inner), words - head_words)[0] is not None
    assert fit(prompt, TextTokenizer(inner), words - head_words - 1)[0] is None


def test_letters_with_and_without_a_space(
    tokenizer: TextTokenizer, plain_tokenizer: TextTokenizer
) -> None:
    assert letter_tokens(tokenizer).record() == {"with_space": [1] * 4, "without_space": [1] * 4}
    assert letter_tokens(plain_tokenizer).record()["with_space"] == [2] * 4


def test_a_tokenizer_without_letters_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "Answer:": 1}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(InvalidInputError, match="no tokens of their own"):
        letter_tokens(TextTokenizer(inner))


def test_a_tokenizer_of_another_model_is_refused(planted: Any, tokenizer: TextTokenizer) -> None:
    runtime = planted(tokenizer, lambda text: {})
    runtime.vocab_size = 40
    with pytest.raises(InvalidInputError, match="but the model has 40 tokens"):
        LoglikScorer(runtime, tokenizer)


def test_answers_do_not_depend_on_the_order_in_which_logits_come(
    monkeypatch: pytest.MonkeyPatch, plain_tokenizer: TextTokenizer, runtime: TorchRuntime
) -> None:
    """Letters of two tokens: both prompts of a question may come apart, and backwards."""
    asks = [
        Ask(question, order)
        for question in load_dataset(VECTORS / "fixture_full").questions
        for order in ("ABCD", "BCDA")
    ]
    scorer = LoglikScorer(runtime, plain_tokenizer)
    expected = {(one.id, one.order): one for one in scorer.answers(asks)}
    one_by_one = loglik.prompt_logits

    def backwards(*given: Any, **more: Any) -> Any:
        return reversed(list(one_by_one(*given, **more)))

    monkeypatch.setattr(loglik, "prompt_logits", backwards)
    found = list(scorer.answers(asks))
    assert [(one.id, one.order) for one in found] != list(expected)
    assert len(found) == len(expected) == 24
    for one in found:
        same = expected[one.id, one.order]
        assert one.logprobs == pytest.approx(same.logprobs, abs=1e-5)
        assert one == replace(same, ns=one.ns, logprobs=one.logprobs)


def test_blocks_are_joined_without_a_seam(
    monkeypatch: pytest.MonkeyPatch, tokenizer: TextTokenizer, runtime: TorchRuntime
) -> None:
    asks = [Ask(question) for question in load_dataset(VECTORS / "fixture_full").questions]
    scorer = LoglikScorer(runtime, tokenizer)
    expected = {one.id: one.logprobs for one in scorer.answers(asks)}
    monkeypatch.setattr(loglik, "_BLOCK", 5)
    found = {one.id: one.logprobs for one in scorer.answers(asks)}
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values == pytest.approx(expected[name], abs=1e-5)
