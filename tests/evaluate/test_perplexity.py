from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from mobilekit import evaluate
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.runtime.base import Logits, Tokens
from mobilekit.runtime.torch import TorchRuntime

TEXT = "Plain words, a café, 12 € and an emoji 😀 in one line.\n" * 3


def oracle(model: Qwen3ForCausalLM, ids: list[int], start: list[int], window: int) -> list[float]:
    """Nats of every token that has something before it in its window, by torch's own loss."""
    nats: list[float] = []
    for first in range(0, len(ids), window):
        fed = torch.tensor([[*start, *ids[first : first + window]]])
        with torch.no_grad():
            logits = model(input_ids=fed, use_cache=False).logits[0].double()
        nats += functional.cross_entropy(logits[:-1], fed[0, 1:], reduction="none").tolist()
    return nats


@pytest.mark.parametrize("window", [7, 40, 1000])
def test_equals_torchs_own_loss(
    model: Qwen3ForCausalLM, runtime: TorchRuntime, tokenizer: TextTokenizer, window: int
) -> None:
    ids = tokenizer.encode(TEXT)
    window = min(window, 512)
    assert tokenizer.eos_id is not None
    expected = oracle(model, ids, [tokenizer.eos_id], window)
    record = evaluate.perplexity(runtime, tokenizer, TEXT, window=window)
    assert record["tokens"] == len(ids) == len(expected)
    assert record["bytes"] == len(TEXT.encode())
    assert record["nats"] == pytest.approx(sum(expected), rel=1e-6)
    assert record["perplexity"] == pytest.approx(math.exp(sum(expected) / len(ids)), rel=1e-6)
    assert record["bits_per_byte"] == pytest.approx(
        sum(expected) / math.log(2) / len(TEXT.encode()), rel=1e-6
    )
    assert sum(tokens for tokens, _ in record["windows"]) == record["tokens"]
    assert record["start_ids"] == [tokenizer.eos_id]


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("window", [2, 33])
def test_step_by_step_scores_the_same_tokens(
    make_tokenizer: Callable[..., TextTokenizer],
    runtime: TorchRuntime,
    last_only: Any,
    eos: bool,
    window: int,
) -> None:
    tokenizer = make_tokenizer([], eos=eos)
    full = evaluate.perplexity(runtime, tokenizer, TEXT, window=window)
    step = evaluate.perplexity(last_only(runtime), tokenizer, TEXT, window=window)
    assert (full["logits"], step["logits"]) == ("full", "step")
    for name in ("tokens", "bytes", "window", "start_ids"):
        assert full[name] == step[name]
    assert step["nats"] == pytest.approx(full["nats"], rel=1e-6)
    assert step["perplexity"] == pytest.approx(full["perplexity"], rel=1e-4)
    for (tokens, nats), (same_tokens, same_nats) in zip(
        full["windows"], step["windows"], strict=True
    ):
        assert tokens == same_tokens
        assert nats == pytest.approx(same_nats, abs=1e-4)


def test_without_a_start_token_the_first_of_a_window_is_left_out(
    make_tokenizer: Callable[..., TextTokenizer], model: Qwen3ForCausalLM, runtime: TorchRuntime
) -> None:
    tokenizer = make_tokenizer([], eos=False)
    text = "é" * 10 + "abc"  # 20 byte tokens and 3
    record = evaluate.perplexity(runtime, tokenizer, text, window=11)
    expected = oracle(model, tokenizer.encode(text), [], 11)
    assert record["tokens"] == len(expected) == 23 - 3
    assert record["nats"] == pytest.approx(sum(expected), rel=1e-6)
    # the first tokens are half an é (its bytes count at its end), a second half, and "c"
    assert record["bytes"] == (12 - 2) + (20 + 2 - 12) + 0


def test_a_character_is_never_split_by_max_tokens(
    runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    for wanted, tokens, num_bytes in ((1, 1, 1), (2, 1, 1), (4, 1, 1), (5, 5, 5), (6, 6, 6)):
        record = evaluate.perplexity(runtime, tokenizer, "a😀b", max_tokens=wanted)
        assert (record["tokens"], record["bytes"]) == (tokens, num_bytes)


def test_the_default_window_is_the_smaller_of_256_and_the_context(
    model: Qwen3ForCausalLM, tokenizer: TextTokenizer
) -> None:
    assert evaluate.perplexity(TorchRuntime(model), tokenizer, TEXT)["window"] == 256
    assert evaluate.perplexity(TorchRuntime(model, 24), tokenizer, TEXT)["window"] == 24


@pytest.mark.parametrize("window", [1, 25])
def test_a_window_that_does_not_fit_is_refused(
    model: Qwen3ForCausalLM, tokenizer: TextTokenizer, window: int
) -> None:
    with pytest.raises(UsageError, match="windows of 2 to 24"):
        evaluate.perplexity(TorchRuntime(model, 24), tokenizer, TEXT, window=window)


def test_a_text_without_a_token_to_score_is_refused(
    make_tokenizer: Callable[..., TextTokenizer], runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(InvalidInputError, match="0 tokens"):
        evaluate.perplexity(runtime, tokenizer, "")
    with pytest.raises(InvalidInputError, match="1 tokens"):
        evaluate.perplexity(runtime, make_tokenizer([], eos=False), "a")


def test_a_tokenizer_of_another_model_is_refused(
    runtime: TorchRuntime, tokenizer: TextTokenizer
) -> None:
    runtime.vocab_size = 30
    with pytest.raises(InvalidInputError, match="but the model has 30 tokens"):
        evaluate.perplexity(runtime, tokenizer, TEXT)


class Broken:
    """Gives NaN, or impossible targets, from some position on."""

    name, version, vocab_size, context_length = "broken", "1", 264, 64

    def __init__(self, value: float) -> None:
        self.value = value

    def reset(self) -> None:
        """Has nothing to forget."""

    def forward(self, tokens: Tokens, position: int) -> Logits:
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[-1] = self.value if position == 5 else 0.0
        return logits


def test_logits_that_are_not_finite_give_null_and_a_reason(tokenizer: TextTokenizer) -> None:
    record = evaluate.perplexity(Broken(math.nan), tokenizer, TEXT, window=32)
    assert record["perplexity"] is record["bits_per_byte"] is record["nats"] is None
    assert record["reason"].startswith("logits are not finite in ")
    flat = evaluate.perplexity(Broken(0.0), tokenizer, TEXT, window=32)
    assert flat["perplexity"] == pytest.approx(264)  # a uniform model
    assert flat["reason"] is None
