"""Mamba-2 in every format: one token a call, a running state that position 0 forgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mobilekit.export.backends import BACKENDS
from mobilekit.export.backends.base import ExportSpec, Lowered
from mobilekit.export.precision import Precision
from torch import nn

from mobilekit.core.errors import UsageError
from mobilekit.models.families import family_of
from mobilekit.runtime import RUNTIMES, TokenLogits
from mobilekit.runtime.torch import TorchRuntime

pytestmark = pytest.mark.slow  # each target lowers for 10 to 20 s

TOKENS = np.arange(1, 25)
SPEC = ExportSpec(Precision("fp32"), 32, eos_token_ids=(0,))
# of eager's logits, up to 2.8; Core ML keeps states in fp16
ERRORS = {"executorch": 2e-5, "onnx": 2e-5, "coreml": 1e-2}


@dataclass
class Artifact:
    """What a back end made of the tiny Mamba-2, and how it is opened."""

    target: str
    model: nn.Module
    lowered: Lowered
    path: Path

    def open(self) -> TokenLogits:
        runtime = RUNTIMES.get(BACKENDS.get(self.target).format)
        return runtime(self.path, context_length=32, vocab_size=256, threads=1)

    def reference(self) -> TokenLogits:
        return BACKENDS.get(self.target).reference(self.model, family_of(self.model), SPEC)


@pytest.fixture(scope="module", params=["executorch", "onnx", "coreml"])
def artifact(
    request: pytest.FixtureRequest,
    tiny: Callable[[str], nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    model, out = tiny("mamba2"), tmp_path_factory.mktemp(request.param)
    lowered = BACKENDS.get(request.param).lower(model, family_of(model), SPEC, out)
    top = Path(lowered.files[0]).parts[0]  # an .mlpackage is a folder
    return Artifact(request.param, model, lowered, out / top)


def fed(runtime: TokenLogits, *ends: int, start: int = 0) -> Any:
    for end in ends:
        logits, start = runtime.forward(TOKENS[start:end], start), end
    return logits


def test_it_says_what_its_reference_and_eager_say(artifact: Artifact) -> None:
    tolerance = BACKENDS.get(artifact.target).tolerance(SPEC).max_abs
    eager = TorchRuntime(artifact.model)
    bounds = {artifact.reference(): tolerance, eager: ERRORS[artifact.target]}
    runtime = artifact.open()
    for other, bound in bounds.items():
        for ends in ([9, 10, 11, 24], [1, 2, 3, 24]):
            np.testing.assert_allclose(fed(runtime, *ends), fed(other, *ends), atol=bound, rtol=0)


def test_position_0_forgets_and_nothing_else_can_be_gone_back_to(artifact: Artifact) -> None:
    runtime = artifact.open()
    first = fed(runtime, 7)
    fed(runtime, 12, start=7)
    for position in (3, 11):
        with pytest.raises(UsageError, match="cannot go back"):
            runtime.forward(TOKENS[:2], position)
    with pytest.raises(UsageError, match="holds 12 tokens"):
        runtime.forward(TOKENS[:1], 13)
    np.testing.assert_array_equal(fed(runtime, 7), first)
    runtime.reset()
    with pytest.raises(UsageError, match="holds 0 tokens"):
        runtime.forward(TOKENS[:1], 7)
    np.testing.assert_array_equal(fed(runtime, 7), first)


def test_the_record_says_what_a_host_must_know(artifact: Artifact) -> None:
    (program,) = artifact.lowered.programs.values()
    assert program.inputs[0].shape == (1, 1)
    states = {s.name: s.shape for s in (*program.states, *program.inputs) if len(s.shape) > 2}
    assert sorted(states.values()) == [(1, 4, 16, 8)] * 2 + [(1, 96, 4)] * 2
    if artifact.target == "executorch":
        metadata = artifact.lowered.settings["metadata"]
        assert metadata["is_recurrent"]
        assert not metadata["enable_dynamic_shape"]
        assert metadata["get_max_seq_len"] == 1
    assert "genai_config.json" not in artifact.lowered.files


def test_a_sound_file_has_no_diverging_layer(artifact: Artifact) -> None:
    backend, family = BACKENDS.get(artifact.target), family_of(artifact.model)
    assert backend.diagnose(artifact.path, artifact.model, family, SPEC, [5]) is None
