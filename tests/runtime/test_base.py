"""One contract of ``forward``: what one runtime refuses, all of them refuse, in the same words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilekit.core.errors import UsageError
from mobilekit.runtime.base import Cursor, TokenLogits, check_call
from mobilekit.runtime.eager import EagerProgram
from mobilekit.runtime.torch import TorchRuntime

T, V = 24, 19

# tokens, position, tokens that the cache holds, and what is said
REFUSED = {
    "gap": ([1], 5, 3, "position 5 was given, but the cache holds 3 tokens"),
    "gap at the start": ([1], 1, 0, "position 1 was given, but the cache holds 0 tokens"),
    "negative position": ([1], -1, 3, "position -1 is negative"),
    "negative id": ([1, -1, 2], 0, 0, "token id -1 is not in the vocabulary of 19"),
    "id too large": ([1, V, 2], 0, 0, "token id 19 is not in the vocabulary of 19"),
    "no token": ([], 0, 0, "empty prompt"),
    "too long": ([1] * 22, 3, 3, "do not fit the exported context of 24"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_that_cannot_be_answered_says_why(case: str) -> None:
    tokens, position, held, words = REFUSED[case]
    given = np.asarray(tokens, dtype=np.int64)
    with pytest.raises(UsageError, match=words):
        check_call(given, position, held=held, vocab_size=V, context_length=T)


@pytest.mark.parametrize("position", [0, 2, 3])
def test_going_on_and_going_back_are_fine(position: int) -> None:
    check_call(np.array([0, V - 1]), position, held=3, vocab_size=V, context_length=T)


class Sum(nn.Module):
    """Logits are the sum of the tokens of this call alone; it keeps nothing."""

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        return tokens.sum().expand(1, 1, V).float()

    def reset(self) -> None:
        """Forget nothing."""


def _torch(model: Any) -> TokenLogits:
    return TorchRuntime(copy.deepcopy(model), context_length=T)


def _eager(model: Any) -> TokenLogits:
    return EagerProgram(Sum(), context_length=T, vocab_size=V)


@pytest.mark.parametrize("make", [_torch, _eager])
def test_a_gap_or_a_wrong_id_is_not_answered_in_silence(
    make: Callable[[Any], TokenLogits], tiny_qwen3: nn.Module
) -> None:
    runtime = make(tiny_qwen3)
    runtime.forward(np.array([1, 2, 3]), 0)
    with pytest.raises(UsageError, match="the cache holds 3 tokens"):
        runtime.forward(np.array([1]), 5)
    runtime.forward(np.array([4]), 1)  # going back drops what was after
    with pytest.raises(UsageError, match="the cache holds 2 tokens"):
        runtime.forward(np.array([1]), 3)
    with pytest.raises(UsageError, match="token id -1"):
        runtime.forward(np.array([-1]), 2)
    runtime.reset()
    with pytest.raises(UsageError, match="the cache holds 0 tokens"):
        runtime.forward(np.array([1]), 2)


def test_after_a_call_that_failed_only_what_is_before_it_counts() -> None:
    class Broken(Sum):
        def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
            if int(input_pos) == 1:
                raise RuntimeError("out of memory")
            return super().forward(tokens, input_pos)

    runtime = EagerProgram(Broken(), context_length=T, vocab_size=V)
    runtime.forward(torch.arange(6).numpy(), 0)
    with pytest.raises(RuntimeError):
        runtime.forward(np.array([1]), 1)
    with pytest.raises(UsageError, match="the cache holds 1 tokens"):
        runtime.forward(np.array([1]), 6)


def test_a_torch_cache_that_a_failed_call_reached_in_part_is_cut_back(
    tiny_qwen3: nn.Module,
) -> None:
    model = copy.deepcopy(tiny_qwen3)
    runtime = TorchRuntime(model, context_length=T)
    runtime.forward(np.array([1, 2, 3]), 0)
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    hook = mlp.register_forward_hook(lambda *_: 1 / 0)  # layer 0 has its keys, layer 1 has not
    with pytest.raises(ZeroDivisionError):
        runtime.forward(np.array([4, 5]), 3)
    hook.remove()
    found = runtime.forward(np.array([6]), 3)
    expected = TorchRuntime(model, context_length=T).forward(np.array([1, 2, 3, 6]), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("is_recurrent", "held"), [(False, 3), (True, 0)])
def test_a_running_state_counts_for_nothing_after_a_call_that_failed(
    is_recurrent: bool, held: int
) -> None:
    cursor = Cursor(vocab_size=V, context_length=T, is_recurrent=is_recurrent)
    with cursor.call(np.array([1, 2, 3]), 0):
        pass
    assert cursor.held == 3
    with pytest.raises(ZeroDivisionError), cursor.call(np.array([4]), 3):
        raise ZeroDivisionError
    assert cursor.held == held
