"""Many prompts on runtimes that run one sequence: the plan, and the same logits as one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mobilekit.export.backends import BACKENDS
from mobilekit.export.backends.base import ExportSpec
from mobilekit.export.precision import Precision
from torch import Tensor, nn

from mobilekit.core.errors import UsageError
from mobilekit.models.families import family_of
from mobilekit.runtime import RUNTIMES, TokenLogits
from mobilekit.runtime.base import Logits, Tokens
from mobilekit.runtime.eager import EagerProgram
from mobilekit.runtime.prompts import Step, plan_steps, prompt_logits

T, V = 48, 256
PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=12)


def arrays(prompts: list[list[int]]) -> list[Tokens]:
    return [np.asarray(prompt, dtype=np.int64) for prompt in prompts]


def fed(prompts: list[list[int]], steps: list[Step]) -> int:
    """Feed a list that holds tokens as a cache would; return how many tokens went in."""
    held: list[int] = []
    count = 0
    for step in steps:
        assert 0 <= step.start < len(step.tokens)
        assert step.start <= len(held)
        held = held[: step.start] + step.tokens[step.start :].tolist()
        count += len(step.tokens) - step.start
        assert all(held == prompts[index] for index in step.indices)
    answered = [index for step in steps for index in step.indices]
    assert sorted(answered) == list(range(len(prompts)))
    return count


@given(prompts=PROMPTS)
def test_a_plan_feeds_every_node_of_the_prefix_tree_once(prompts: list[list[int]]) -> None:
    nodes = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}
    assert fed(prompts, plan_steps(arrays(prompts))) == len(nodes)


@given(prompts=PROMPTS)
def test_a_running_state_starts_anew_or_goes_on_from_its_end(prompts: list[list[int]]) -> None:
    steps = plan_steps(arrays(prompts), is_recurrent=True)
    assert fed(prompts, steps) <= sum(map(len, prompts))
    for before, step in zip(steps, steps[1:], strict=False):
        is_longer = step.tokens[: len(before.tokens)].tolist() == before.tokens.tolist()
        assert step.start == (len(before.tokens) if is_longer else 0)


@given(prompts=PROMPTS, chunk=st.integers(1, 5))
def test_with_chunks_no_earlier_start_takes_fewer_calls(
    prompts: list[list[int]], chunk: int
) -> None:
    def calls(step: Step, start: int) -> int:
        whole, rest = divmod(len(step.tokens) - start, chunk)
        return whole + rest

    chunked = plan_steps(arrays(prompts), chunk=chunk)
    assert fed(prompts, chunked) <= sum(map(len, prompts))
    for step, shared in zip(chunked, plan_steps(arrays(prompts)), strict=True):
        best = min(calls(step, start) for start in range(shared.start + 1))
        assert calls(step, step.start) == best


class Counting(nn.Module):
    """Logits count how often each token stands at this position and before."""

    def __init__(self) -> None:
        super().__init__()
        self.history: Tensor
        self.register_buffer("history", torch.zeros(T, dtype=torch.long))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        end = int(input_pos) + tokens.shape[1]
        self.history[int(input_pos) : end] = tokens[0]
        return torch.bincount(self.history[:end], minlength=V)[None, None].float()

    def reset(self) -> None:
        """Keep what is there: it is written over."""


class Bare:
    """A runtime that says no more than the protocol asks; it counts what it is given."""

    name, version, vocab_size, context_length = "bare", "1", V, T

    def __init__(self) -> None:
        self.inner = EagerProgram(Counting(), context_length=T, vocab_size=V)
        self.calls: list[tuple[int, int]] = []

    def reset(self) -> None:
        self.inner.reset()

    def forward(self, tokens: Tokens, position: int) -> Logits:
        self.calls.append((len(tokens), position))
        return self.inner.forward(tokens, position)


@settings(deadline=None, max_examples=40)
@given(prompts=PROMPTS, is_bare=st.booleans())
def test_each_prompt_gets_its_own_answer_once(prompts: list[list[int]], is_bare: bool) -> None:
    bare = Bare()
    runtime: TokenLogits = bare if is_bare else bare.inner
    told: list[int] = []
    answers = list(prompt_logits(runtime, prompts, advance=told.append))
    assert sorted(index for index, _ in answers) == list(range(len(prompts)))
    assert sum(told) == len(prompts)
    for index, logits in answers:
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, np.bincount(prompts[index], minlength=V))


def test_a_runtime_that_does_not_say_so_is_not_asked_to_go_back() -> None:
    runtime = Bare()
    list(prompt_logits(runtime, [[1, 2, 3], [1, 2, 4], [1, 2, 4, 5]]))
    assert runtime.calls == [(3, 0), (3, 0), (1, 3)]


def test_answers_of_equal_prompts_share_no_memory() -> None:
    runtime = EagerProgram(Counting(), context_length=T, vocab_size=V)
    (_, one), (_, other) = prompt_logits(runtime, [[7], [7]])
    one += 1
    assert other[7] == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [([], "empty prompt"), ([1] * (T + 1), "do not fit"), ([V], f"token id {V}")],
)
def test_one_bad_prompt_is_refused_before_anything_is_run(bad: list[int], words: str) -> None:
    runtime = Bare()
    with pytest.raises(UsageError, match=words):
        prompt_logits(runtime, [[1, 2], bad])
    assert runtime.calls == []


@pytest.fixture(scope="module", params=["onnx", pytest.param("executorch", marks=pytest.mark.slow)])
def artifact(
    request: pytest.FixtureRequest, tiny_qwen3: nn.Module, tmp_path_factory: Any
) -> TokenLogits:
    out: Path = tmp_path_factory.mktemp(request.param)
    backend = BACKENDS.get(request.param)
    spec = ExportSpec(Precision("fp32"), T, eos_token_ids=(0,))
    lowered = backend.lower(tiny_qwen3, family_of(tiny_qwen3), spec, out)
    opened = RUNTIMES.get(backend.format)
    return opened(out / lowered.files[0], context_length=T, vocab_size=V, threads=1)


def mixed_prompts(count: int = 17, longest: int = T) -> list[list[int]]:
    """Odd lengths that share heads, one token alone, one twice, one that another begins with."""
    rng = np.random.default_rng(5)
    heads = [rng.integers(1, V, 12).tolist() for _ in range(2)]
    tails = [rng.integers(1, V, rng.integers(1, longest - 11)).tolist() for _ in range(count)]
    found = [heads[i % 2][: rng.integers(0, 13)] + tail for i, tail in enumerate(tails)]
    return [*found, [9], found[0], found[1][:3]]


def test_an_artifact_answers_as_it_does_one_by_one(artifact: TokenLogits) -> None:
    prompts = mixed_prompts()
    found = dict(prompt_logits(artifact, prompts))
    for index, prompt in enumerate(prompts):
        artifact.reset()
        alone = artifact.forward(np.asarray(prompt), 0)
        np.testing.assert_allclose(found[index], alone, atol=1e-4)
        assert np.argmax(found[index]) == np.argmax(alone)
