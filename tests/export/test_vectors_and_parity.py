from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from mobilekit.export import vectors as parity_vectors
from mobilekit.export.backends.base import ExportSpec
from mobilekit.export.backends.onnx import ONNX
from mobilekit.export.parity import (
    PROGRAM_KL,
    compare_greedy,
    deviation,
    is_origin,
    measure,
    verify,
    within,
)
from mobilekit.export.precision import Precision
from mobilekit.export.vectors import Answer, Vectors
from mobilekit.export.worker import program_deviation
from torch import nn

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.models import checkpoint_hash
from mobilekit.models.families import Phase, Program, family_of
from mobilekit.runtime.base import Logits, Tokens
from mobilekit.runtime.generate import greedy
from mobilekit.runtime.torch import TorchRuntime
from mobilekit.schema.bundle import Bundle
from mobilekit.schema.manifest import Deviation, Manifest, Tolerance

PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6]]
TIGHT = Tolerance(max_abs=1e-5, kl=1e-8, kl_p90=1e-8, top1=1.0)


@pytest.fixture(scope="module")
def recorded(tiny_qwen3: nn.Module) -> Vectors:
    return parity_vectors.record(TorchRuntime(tiny_qwen3), PROMPTS, 12)


def test_eager_repeats_itself(tiny_qwen3: nn.Module, recorded: Vectors) -> None:
    again = parity_vectors.replay(TorchRuntime(tiny_qwen3), recorded)
    assert np.array_equal(again.argmax, recorded.tokens)
    np.testing.assert_allclose(again.logits, recorded.eager.logits, atol=1e-6)


def test_recorded_logits_are_those_of_one_full_forward(
    tiny_qwen3: nn.Module, recorded: Vectors
) -> None:
    runtime = TorchRuntime(tiny_qwen3)
    for (p, n), logits in zip(recorded.steps, recorded.eager.logits, strict=True):
        text = [*recorded.prompts[p], *recorded.tokens[p, :n]]
        full = runtime.full_logits(np.asarray(text))
        np.testing.assert_allclose(full[-1], logits, atol=1e-5)
        gap = np.sort(full[-1])[-1] - np.sort(full[-1])[-2]
        assert abs(gap - recorded.gaps[p, n]) < 1e-5


def test_vectors_round_trip(recorded: Vectors, tmp_path: Path) -> None:
    recorded.same["onnx-cpu-int8"] = recorded.eager
    parity_vectors.write(recorded, tmp_path / "v.safetensors")
    again = parity_vectors.read(tmp_path / "v.safetensors")
    assert again.prompts == recorded.prompts
    assert np.array_equal(again.tokens, recorded.tokens)
    assert np.array_equal(again.same["onnx-cpu-int8"].logits, recorded.eager.logits)


def test_damaged_vectors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(InvalidInputError, match="parity vectors"):
        parity_vectors.read(tmp_path / "v")


def test_an_equal_model_passes_and_a_changed_one_fails(
    tiny_qwen3: nn.Module, tiny_qwen3_moe: nn.Module, recorded: Vectors
) -> None:
    def check(model: nn.Module) -> object:
        return measure(
            TorchRuntime(model), recorded, recorded.eager, precision="fp32", tolerance=TIGHT
        )

    assert check(tiny_qwen3).passed is True  # type: ignore[attr-defined]
    other = check(tiny_qwen3_moe)
    assert other.passed is False  # type: ignore[attr-defined]
    assert other.against_fp32.max_abs > 0.01  # type: ignore[attr-defined]


def test_greedy_by_replay_is_greedy_by_itself(tiny_qwen3_moe: nn.Module, recorded: Vectors) -> None:
    """Replay feeds eager's tokens; up to the first different argmax that is the same thing."""
    runtime = TorchRuntime(tiny_qwen3_moe)
    replayed = parity_vectors.replay(runtime, recorded)
    for p, prompt in enumerate(recorded.prompts):
        own = greedy(runtime, prompt, recorded.tokens.shape[1])
        differs = np.flatnonzero(replayed.argmax[p] != recorded.tokens[p])
        same = int(differs[0]) if len(differs) else len(own)
        assert own[:same] == list(recorded.tokens[p, :same])
        assert same == len(own) or own[same] != recorded.tokens[p, same]


def planted(argmax: list[list[int]], gaps: list[list[float]]) -> tuple[Vectors, Answer]:
    tokens = np.zeros((2, 3), dtype=np.int64)
    logits = np.zeros((1, 4), dtype=np.float32)
    steps = np.zeros((1, 2), dtype=np.int64)
    vectors = Vectors(
        ((1,), (2,)), tokens, np.asarray(gaps, np.float32), steps, Answer(tokens, logits), {}
    )
    return vectors, Answer(np.asarray(argmax, dtype=np.int64), logits)


@pytest.mark.parametrize(
    ("argmax", "gaps", "counts"),
    [
        ([[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]], (2, 0, 0)),
        ([[0, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]], (1, 0, 1)),
        ([[0, 1, 0], [0, 0, 0]], [[1, 0.1, 1], [1, 1, 1]], (1, 1, 0)),
        # only the first divergence can be excused: what follows has another past
        ([[1, 1, 0], [0, 0, 1]], [[1, 0.1, 1], [1, 1, 0.1]], (0, 1, 1)),
    ],
)
def test_near_ties_are_excused_and_counted(
    argmax: list[list[int]], gaps: list[list[float]], counts: tuple[int, int, int]
) -> None:
    vectors, answer = planted(argmax, gaps)
    record = compare_greedy(vectors, answer, error=0.1)
    assert (record.equal, record.excused, record.different) == counts


class Forgetful(TorchRuntime):
    """Wrong wherever several tokens stand behind others, and in the last cache slot."""

    def forward(self, tokens: Tokens, position: int) -> Logits:
        logits = super().forward(tokens, position)
        at_end = position + len(tokens) == self.context_length
        return -logits if (position and len(tokens) > 1) or at_end else logits


def test_a_long_prompt_reaches_every_slot_and_several_tokens_behind_others(
    tiny_qwen3: nn.Module,
) -> None:
    prompt = np.random.default_rng(0).integers(0, 256, 57).tolist()
    vectors = parity_vectors.record(TorchRuntime(tiny_qwen3), [[1], prompt], 8)
    runtime = Forgetful(tiny_qwen3, context_length=64)
    answer = parity_vectors.replay(runtime, vectors)
    wrong = [tuple(step) for step in np.argwhere(answer.argmax != vectors.tokens).tolist()]
    assert (1, 0) in wrong
    assert (1, 7) in wrong
    assert not [step for step in wrong if step[0] == 0]


def test_an_excerpt_is_a_part_of_the_vectors(recorded: Vectors) -> None:
    some = parity_vectors.excerpt(recorded, 2)
    assert some.prompts == (recorded.prompts[0], recorded.prompts[-1])
    assert np.array_equal(some.tokens, recorded.tokens[[0, -1], :2])
    for (p, n), logits in zip(some.steps, some.eager.logits, strict=True):
        whole = [0, len(recorded.prompts) - 1][p]
        row = np.flatnonzero((recorded.steps == [whole, n]).all(axis=1))
        assert np.array_equal(recorded.eager.logits[row[0]], logits)


def test_a_program_that_is_not_the_model_fails_whatever_its_reference_says(
    tiny_qwen3: nn.Module, recorded: Vectors
) -> None:
    """The artifact's own reference is made of the same program, so it cannot tell."""
    family = family_of(tiny_qwen3)

    def faulty(model: nn.Module, phase: Phase) -> Program:
        program = family.program(model, phase)
        norm = program.module.get_submodule("model.model.norm")
        norm.weight = nn.Parameter(norm.weight * 1.1, requires_grad=False)  # type: ignore[operator]
        return program

    spec = ExportSpec(Precision("int8"), 64)
    sound = program_deviation(ONNX, tiny_qwen3, family, spec, recorded)
    assert sound.kl < PROGRAM_KL / 100
    broken = dataclasses.replace(family, program=faulty)
    assert program_deviation(ONNX, tiny_qwen3, broken, spec, recorded).kl > PROGRAM_KL


def test_one_flip_is_no_fault_where_steps_are_few() -> None:
    found = Deviation(reference="x", max_abs=0.001, kl=1e-6, kl_p90=1e-6, top1=35 / 36)
    bounds = Tolerance(max_abs=1.0, kl=1e-3, kl_p90=1e-3, top1=0.98)
    assert within(found, bounds, steps=36)
    assert not within(found.model_copy(update={"top1": 34 / 36}), bounds, steps=36)


def test_a_reference_that_is_not_finite_is_infinitely_far_too() -> None:
    vectors, answer = planted([[0] * 3] * 2, [[1] * 3] * 2)
    broken = Answer(answer.argmax, np.full((1, 4), np.nan, dtype=np.float32))
    assert deviation("x", broken, answer).max_abs > 1e30


def test_a_nan_logit_is_infinitely_far() -> None:
    vectors, answer = planted([[0] * 3] * 2, [[1] * 3] * 2)
    broken = Answer(answer.argmax, np.full((1, 4), np.nan, dtype=np.float32))
    assert deviation("x", vectors.eager, broken).max_abs > 1e30


def test_a_checkpoint_that_a_bundle_was_not_made_of_is_refused(
    tiny_qwen3: nn.Module, tmp_path: Path
) -> None:
    manifest = Manifest(
        task="causal-lm",
        interface="token-logits/1",
        model={"context_length": 8, "vocab_size": 4},
        artifacts=(),
        provenance={"checkpoint": "sha256:" + "0" * 64},
    )
    copy.deepcopy(tiny_qwen3).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(UsageError, match="is not the checkpoint that"):
        verify(Bundle(tmp_path / "bundle", manifest), checkpoint=tmp_path)
    own = {"checkpoint": checkpoint_hash(tmp_path)}
    assert is_origin(manifest.model_copy(update={"provenance": own}), tmp_path)
