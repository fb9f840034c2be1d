"""The Core ML runtime on a hand-made package whose answers can be worked out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402 - after the skip
from coremltools.converters.mil.mil import types  # noqa: E402

from mobilekit.core.errors import InvalidInputError, UsageError  # noqa: E402
from mobilekit.runtime.coreml import CoreMLRuntime, chunks  # noqa: E402
from mobilekit.runtime.mil import load_functions  # noqa: E402
from mobilekit.runtime.mil.tools import quiet  # noqa: E402
from mobilekit.runtime.prompts import prompt_logits  # noqa: E402

CONTEXT, VOCAB, PREFILL = 16, 32, 4
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")


def _program(length: int) -> Any:
    """logits[v] = v · (sum of the tokens at this position and before); tokens live in a state."""
    specs = [
        mb.TensorSpec(shape=(1, length), dtype=types.int32),
        mb.TensorSpec(shape=(1,), dtype=types.int32),
        mb.StateTensorSpec((CONTEXT,), dtype=types.fp16),
    ]
    slots = np.arange(CONTEXT, dtype=np.int32)
    vocabulary = np.arange(VOCAB, dtype=np.float32)

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(input_ids: Any, input_pos: Any, cache: Any) -> Any:
        positions = mb.add(x=np.arange(length, dtype=np.int32)[:, None], y=input_pos)
        written = mb.cast(x=mb.equal(x=positions, y=slots[None]), dtype="fp16")  # (S, T)
        tokens = mb.cast(x=input_ids, dtype="fp16")  # (1, S)
        new = mb.squeeze(x=mb.matmul(x=tokens, y=written), axes=[0])
        kept = mb.sub(x=np.float16(1), y=mb.reduce_sum(x=written, axes=[0]))
        old = mb.mul(x=mb.read_state(input=cache), y=kept)
        cache = mb.coreml_update_state(state=cache, value=mb.add(x=old, y=new))
        last = mb.slice_by_index(x=positions, begin=[length - 1, 0], end=[length, 1])
        visible = mb.cast(x=mb.less_equal(x=slots[None], y=last), dtype="fp16")
        total = mb.reduce_sum(x=mb.mul(x=cache, y=visible), axes=[1], keep_dims=True)
        logits = mb.mul(x=mb.cast(x=total, dtype="fp32"), y=vocabulary)
        return mb.reshape(x=logits, shape=[1, 1, VOCAB], name="logits")

    return program


@pytest.fixture(scope="session")
def toy_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    descriptor = ct.utils.MultiFunctionDescriptor()
    with quiet():
        for name, length in (("decode", 1), ("prefill", PREFILL)):
            model = ct.convert(
                _program(length),
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=ct.precision.FLOAT32,
                pass_pipeline=ct.PassPipeline.EMPTY,
                skip_model_load=True,
            )
            model.save(str(folder / f"{name}.mlpackage"))
            descriptor.add_function(
                str(folder / f"{name}.mlpackage"),
                src_function_name="main",
                target_function_name=name,
            )
        descriptor.default_function_name = "decode"
        ct.utils.save_multifunction(descriptor, str(folder / "model.mlpackage"))
    return folder / "model.mlpackage"


@pytest.fixture
def runtime(toy_package: Path) -> CoreMLRuntime:
    return _open(toy_package)


def _open(path: Path) -> CoreMLRuntime:
    return CoreMLRuntime(path, context_length=CONTEXT, vocab_size=VOCAB, threads=1)


def _expected(tokens: list[int]) -> np.ndarray:
    return np.arange(VOCAB, dtype=np.float32) * sum(tokens)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11, 16])
def test_prompt_of_any_length(runtime: CoreMLRuntime, count: int) -> None:
    tokens = list(range(1, count + 1))
    found = runtime.forward(np.asarray(tokens), 0)
    assert found.shape == (VOCAB,)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, _expected(tokens))


def test_states_persist_and_reset_clears_them(runtime: CoreMLRuntime) -> None:
    runtime.forward(np.asarray([5, 6, 7, 8, 9]), 0)
    np.testing.assert_array_equal(
        runtime.forward(np.asarray([2]), 5), _expected([5, 6, 7, 8, 9, 2])
    )
    runtime.reset()
    np.testing.assert_array_equal(runtime.forward(np.asarray([3]), 0), _expected([3]))


def test_going_back_discards_what_was_after(runtime: CoreMLRuntime) -> None:
    runtime.forward(np.asarray([1, 2, 3, 4, 5, 6]), 0)
    np.testing.assert_array_equal(runtime.forward(np.asarray([9]), 2), _expected([1, 2, 9]))
    np.testing.assert_array_equal(
        runtime.forward(np.asarray([1, 1, 1, 1, 7]), 3), _expected([1, 2, 9, 1, 1, 1, 1, 7])
    )


def test_two_runtimes_do_not_share_states(toy_package: Path) -> None:
    first, second = _open(toy_package), _open(toy_package)
    first.forward(np.asarray([4]), 0)
    second.forward(np.asarray([1]), 0)
    np.testing.assert_array_equal(second.forward(np.asarray([2]), 1), _expected([1, 2]))


@pytest.mark.parametrize(("tokens", "position"), [([], 0), ([1] * 17, 0), ([1], 16), ([1], -1)])
def test_what_does_not_fit_is_refused(
    runtime: CoreMLRuntime, tokens: list[int], position: int
) -> None:
    with pytest.raises(UsageError):
        runtime.forward(np.asarray(tokens, dtype=np.int64), position)


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("length", [1, 4, None])
def test_chunks_cover_every_token_once(count: int, length: int | None) -> None:
    calls = chunks(count, length)
    assert [i for _, start, stop in calls for i in range(start, stop)] == list(range(count))
    assert {stop - start for name, start, stop in calls if name == "prefill"} <= {length}
    assert sum(name == "decode" for name, _, _ in calls) == (count % length if length else count)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself runs there")
def test_name_says_that_core_ml_did_not_run(runtime: CoreMLRuntime) -> None:
    assert (runtime.name, runtime.version) == ("mil-numpy", np.__version__)


class _StandIn:
    """Takes the place of coremltools' MLModel, which predicts on macOS only."""

    def __init__(self, path: str, function_name: str) -> None:
        self.function = load_functions(Path(path))[function_name]

    def make_state(self) -> dict[str, Any]:
        return self.function.zero_states()

    def predict(self, feeds: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        return self.function(feeds, state)


def test_on_macos_one_state_serves_both_functions(
    toy_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", _StandIn)
    runtime = _open(toy_package)
    assert runtime.name == "coreml"
    np.testing.assert_array_equal(
        runtime.forward(np.asarray([1, 2, 3, 4, 5]), 0), _expected([1, 2, 3, 4, 5])
    )
    runtime.reset()
    runtime.forward(np.asarray([2]), 0)
    np.testing.assert_array_equal(runtime.forward(np.asarray([3]), 1), _expected([2, 3]))


def _truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _drop_function(package: Path) -> None:
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    spec.description.functions[0].output[0].name = "scores"
    (package / MODEL).write_bytes(spec.SerializeToString())


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda p: (p / "Manifest.json").unlink(),
    "manifest is no JSON": lambda p: (p / "Manifest.json").write_text("{"),
    "manifest is a list": lambda p: (p / "Manifest.json").write_text("[]"),
    "manifest without root": lambda p: (p / "Manifest.json").write_text("{}"),
    "no model": lambda p: (p / MODEL).unlink(),
    "half a model": lambda p: _truncate(p / MODEL, 0.5),
    "empty model": lambda p: _truncate(p / MODEL, 0),
    "model is noise": lambda p: (p / MODEL).write_bytes(bytes(range(256)) * 8),
    "no weights": lambda p: (p / WEIGHTS).unlink(),
    "half the weights": lambda p: _truncate(p / WEIGHTS, 0.5),
    "empty weights": lambda p: _truncate(p / WEIGHTS, 0),
    "weights are noise": lambda p: (p / WEIGHTS).write_bytes(
        b"\x01" * (p / WEIGHTS).stat().st_size
    ),
    "another interface": _drop_function,
    "no package": lambda p: shutil.rmtree(p),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_package_is_refused_in_two_lines(
    toy_package: Path, tmp_path: Path, damage: str
) -> None:
    package = tmp_path / "model.mlpackage"
    shutil.copytree(toy_package, package)
    DAMAGE[damage](package)
    with pytest.raises(InvalidInputError) as caught:
        _open(package)
    assert len(str(caught.value).splitlines()) == 2
    assert str(package) in str(caught.value)


def test_manifest_cannot_point_outside(toy_package: Path, tmp_path: Path) -> None:
    package = tmp_path / "model.mlpackage"
    shutil.copytree(toy_package, package)
    manifest = package / "Manifest.json"
    manifest.write_text(
        manifest.read_text()
        .replace("com.apple.CoreML/model.mlmodel", "../../model.mlmodel")
        .replace("com.apple.CoreML\\/model.mlmodel", "../../model.mlmodel")
    )
    with pytest.raises(InvalidInputError, match="leaves the directory"):
        _open(package)


def test_a_gap_or_a_wrong_id_is_not_answered_in_silence(runtime: CoreMLRuntime) -> None:
    runtime.forward(np.asarray([1, 2, 3]), 0)
    with pytest.raises(UsageError, match="the cache holds 3 tokens"):
        runtime.forward(np.asarray([1]), 5)
    for token in (-1, VOCAB):
        with pytest.raises(UsageError, match=f"token id {token} is not in the vocabulary"):
            runtime.forward(np.asarray([token]), 3)


def test_prompts_that_share_a_beginning_go_in_by_whole_chunks(runtime: CoreMLRuntime) -> None:
    called: list[str] = []
    run = runtime._engine.run
    runtime._engine.run = lambda name, feeds: (called.append(name), run(name, feeds))[1]  # type: ignore[method-assign]
    head = [1, 2, 3, 4, 5, 6]
    prompts = [[*head, 7, 8], [*head, 9, 10], [*head, 9, 10, 11, 12, 13, 14]]
    for index, logits in prompt_logits(runtime, prompts):
        assert logits[1] == sum(prompts[index])
    assert called == ["prefill"] * 4  # two from 0, one from 4 though 6 are shared, one from 8
