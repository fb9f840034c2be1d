"""Layers that differ, in every format: a cache each of its own size, none without attention."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mobilekit.export.backends import BACKENDS
from mobilekit.export.backends.base import ExportSpec, Lowered
from mobilekit.export.precision import Precision

from mobilekit.models.families import Phase, Program, StateForm, family_of
from mobilekit.models.surgery import restructure_
from mobilekit.models.tiny import make_tiny
from mobilekit.runtime.coreml import CoreMLRuntime
from mobilekit.runtime.executorch import ExecutorchRuntime
from mobilekit.runtime.generate import greedy
from mobilekit.runtime.onnx import OnnxRuntime
from mobilekit.schema.plan import Edit, KeepEdit, RemoveEdit

T, V, HEAD_DIM = 48, 256, 16
TOKENS = np.random.default_rng(5).integers(0, V, 40)
SPANS = [(0, 9), (9, 10), (10, 27), (27, 28), (28, 40)]
TARGETS = ("onnx", "executorch", "coreml")
# six query heads, two a key-value head
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 5}
EDITS: list[Edit] = [
    RemoveEdit(unit="attention", layer=0),
    KeepEdit(unit="head", layer=1, indices=(0, 1, 3)),
    KeepEdit(unit="kv_head", layer=2, indices=(0, 2)),
    RemoveEdit(unit="mlp", layer=2),
    RemoveEdit(unit="attention", layer=3),
    RemoveEdit(unit="mlp", layer=3),
    KeepEdit(unit="channel", layer=4, indices=tuple(range(1, 65))),
]
KV_HEADS = [3, 2, 3]  # of layers 1, 2 and 4


def narrowed(name: str, edits: list[Edit], **changes: Any) -> Any:
    settings = {**HEADS, "hidden_size": 96, "head_dim": HEAD_DIM, **changes}
    model = make_tiny(name, **settings)
    restructure_(model, edits)
    return model


def wanted(model: Any, tokens: Any = TOKENS) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens))[None], use_cache=False).logits[0].numpy()


@dataclass(frozen=True)
class Artifact:
    target: str
    model: Any
    lowered: Lowered
    path: Path

    def runtime(self) -> Any:
        classes: dict[str, Callable[..., Any]] = {
            "onnx": OnnxRuntime,
            "executorch": ExecutorchRuntime,
            "coreml": CoreMLRuntime,
        }
        return classes[self.target](self.path, context_length=T, vocab_size=V, threads=1)


def lower(model: Any, target: str, out: Path, precision: str = "fp32") -> Artifact:
    spec = ExportSpec(Precision(precision), T, eos_token_ids=(0,))
    before = copy.deepcopy(model)
    lowered = BACKENDS.get(target).lower(model, family_of(model), spec, out)
    np.testing.assert_array_equal(wanted(model), wanted(before))  # it stays as it was
    name = "model.mlpackage" if target == "coreml" else lowered.files[0]
    return Artifact(target, model, lowered, out / name)


@pytest.fixture(scope="module")
def model() -> Any:
    return narrowed("qwen3", EDITS)


@pytest.fixture(scope="module", params=TARGETS)
def artifact(
    request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    pytest.importorskip({"onnx": "onnxscript", "coreml": "coremltools"}.get(request.param, "torch"))
    return lower(model, request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_an_artifact_computes_what_the_model_does(artifact: Artifact) -> None:
    expected, runtime = wanted(artifact.model), artifact.runtime()
    tolerance = 2e-2 if artifact.target == "coreml" else 1e-4  # its states are fp16
    for start, end in (*SPANS, (4, 9), (9, 40)):
        found = runtime.forward(TOKENS[start:end], start)
        np.testing.assert_allclose(found, expected[end - 1], atol=tolerance)


@pytest.mark.slow
def test_an_artifact_generates_what_the_model_does(artifact: Artifact) -> None:
    prompt = TOKENS[:12].tolist()
    found = greedy(artifact.runtime(), prompt, 8)
    sequence = list(prompt)
    for _ in range(8):
        sequence.append(int(wanted(artifact.model, sequence)[-1].argmax()))
    assert list(found) == sequence[len(prompt) :]


@pytest.mark.slow
def test_there_is_a_cache_a_layer_with_attention(artifact: Artifact) -> None:
    for program in artifact.lowered.programs.values():
        caches = [spec.shape for spec in (*program.inputs, *program.states) if len(spec.shape) == 4]
        heads = 2 if artifact.target == "executorch" else 1  # its kernel wants (1, T, H, Dh)
        assert [shape[heads] for shape in caches] == [count for count in KV_HEADS for _ in "kv"]
        assert {shape[3] for shape in caches} == {HEAD_DIM}
    if artifact.target == "executorch":
        assert artifact.lowered.settings["metadata"]["get_n_layers"] == 4  # of the fourth none is
    if artifact.target == "onnx":
        assert "genai_config.json" not in artifact.lowered.files
        assert "key-value heads" in artifact.lowered.settings["not_for_onnxruntime_genai"]
        assert artifact.lowered.settings["fused"]["GroupQueryAttention"] == len(KV_HEADS)


@pytest.mark.slow
def test_a_sound_artifact_has_no_diverging_layer(artifact: Artifact) -> None:
    backend, spec = BACKENDS.get(artifact.target), ExportSpec(Precision("fp32"), T)
    tokens = TOKENS[:20].tolist()
    model = artifact.model
    assert backend.diagnose(artifact.path, model, family_of(model), spec, tokens) is None


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_one_attention_is_enough(target: str, tmp_path: Path) -> None:
    gone: list[Edit] = [RemoveEdit(unit="attention", layer=i) for i in (0, 1)]
    model = narrowed(
        "gemma2", [*gone, KeepEdit(unit="head", layer=2, indices=(0, 1, 4))], num_hidden_layers=3
    )
    artifact = lower(model, target, tmp_path)
    runtime, expected = artifact.runtime(), wanted(model)
    for start, end in SPANS:
        found = runtime.forward(TOKENS[start:end], start)
        np.testing.assert_allclose(
            found, expected[end - 1], atol=2e-2 if target == "coreml" else 1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_few_bit_projections_of_uneven_layers(model: Any, precision: str, tmp_path: Path) -> None:
    artifact = lower(model, "onnx", tmp_path, precision)
    spec = ExportSpec(Precision(precision), T)
    reference = BACKENDS.get("onnx").reference(model, family_of(model), spec)
    runtime, differences = artifact.runtime(), []
    for start, end in SPANS:
        found = runtime.forward(TOKENS[start:end], start)
        expected = reference.forward(TOKENS[start:end], start)
        differences.append(np.abs(found - expected).max())
    # equal, until an activation falls between two levels within rounding error
    assert min(differences) < 1e-5
    assert max(differences) < 0.2  # of logits up to 4


@pytest.mark.slow
def test_the_stock_runner_takes_layers_without_attention(tmp_path: Path) -> None:
    og = pytest.importorskip("onnxruntime_genai")
    edits: list[Edit] = [
        RemoveEdit(unit="attention", layer=0),
        KeepEdit(unit="head", layer=1, indices=(0, 1, 3)),
    ]
    model = narrowed("qwen3", edits, num_hidden_layers=3)
    artifact = lower(model, "onnx", tmp_path)
    config = json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (2, 3)
    stock = og.Model(str(tmp_path))
    params = og.GeneratorParams(stock)
    params.set_search_options(max_length=20, do_sample=False)
    generator = og.Generator(stock, params)
    prompt = TOKENS[:12].tolist()
    generator.append_tokens(np.asarray([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = list(generator.get_sequence(0))[len(prompt) :]
    assert found[:8] == list(greedy(artifact.runtime(), prompt, 8))[: len(found)]


def stepped(program: Program, run: Any, cuts: list[int]) -> Any:
    """Return the last logits after feeding the tokens in calls that end at ``cuts``."""
    names = [spec.name for spec in program.inputs if not spec.name.startswith("past")]
    shapes = [spec.shape for spec in program.inputs if spec.name.startswith("past")]
    past = [torch.zeros([0 if isinstance(n, str) else n for n in shape]) for shape in shapes]
    integer, ids, start = program.example_inputs[0].dtype, torch.from_numpy(TOKENS)[None], 0
    for end in cuts:
        given = {
            "tokens": ids[:, start:end],
            "input_ids": ids[:, start:end].to(integer),
            "input_pos": torch.tensor([start], dtype=integer),
            "attention_mask": torch.ones(1, end, dtype=torch.long),
            "position_ids": torch.arange(start, end)[None],
        }
        arguments = [given[name] for name in names]
        with torch.no_grad():
            output = run(*arguments, past) if past else run(*arguments)
        logits, past = output if past else (output, [])
        start = end
    return logits[0, -1].numpy()


DENSE = ["llama", "mistral-window", "qwen2", "qwen2-window", "qwen3", "gemma2", "gemma3", "phi3"]
MOE = ["mixtral", "qwen2_moe", "qwen3_moe", "granite_moe", "ernie4_5_moe", "glm4_moe"]


@pytest.mark.parametrize(
    ("name", "form"),
    [*itertools.product(DENSE, StateForm), *((name, StateForm.RESIDENT) for name in MOE)],
)
def test_every_class_is_captured_in_every_form(name: str, form: StateForm) -> None:
    edits: list[Edit] = [
        RemoveEdit(unit="attention", layer=0),
        KeepEdit(unit="head", layer=1, indices=(0, 1, 3)),
        KeepEdit(unit="kv_head", layer=2, indices=(0, 2)),
    ]
    if name in DENSE:
        edits += [
            RemoveEdit(unit="mlp", layer=2),
            KeepEdit(unit="channel", layer=1, indices=(3, 9)),
        ]
    model = narrowed(name, edits, num_hidden_layers=3)
    is_static = form is StateForm.ARITHMETIC
    phase = Phase("forward", form, T, 1 if is_static else None)
    program = family_of(model).export_program(model, phase)
    caches = [s.shape for s in (*program.inputs, *program.states) if len(s.shape) == 4]
    assert [shape[1] for shape in caches] == [3, 3, 2, 2]
    assert len(program.outputs) == 1 + (len(caches) if form is StateForm.EXPLICIT else 0)
    exported = torch.export.export(
        program.module, program.example_inputs, dynamic_shapes=program.dynamic_shapes, strict=False
    )
    cuts = list(range(1, 41)) if is_static else [end for _, end in SPANS]
    expected = wanted(model)[-1]
    for run in (program.module, exported.module()):
        np.testing.assert_allclose(stepped(program, run, cuts), expected, atol=2e-5)
        if form is not StateForm.EXPLICIT:
            program.module.reset()  # type: ignore[operator]
