"""The runtime against a one-layer attention model written by hand, and its oracle in numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.runtime import RUNTIMES
from mobilekit.runtime.onnx import OnnxRuntime

T, V, HEADS, HEAD_DIM = 24, 19, 2, 8
D = HEADS * HEAD_DIM


def _weights() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    shapes = {"table": (V, D), "positions": (T, D), "head": (D, V)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _graph(*, past_name: str = "past_key_values.0") -> onnx.ModelProto:
    """Embedding plus a row a position → one causal attention → logits of the last position."""
    make, info = helper.make_node, helper.make_tensor_value_info
    i64, f32 = TensorProto.INT64, TensorProto.FLOAT
    constants = {
        **_weights(),
        "one": np.array(1, dtype=np.int64),
        "axis": np.array([1], dtype=np.int64),
        "end": np.array([np.iinfo(np.int64).max], dtype=np.int64),
        "last": np.array([-1], dtype=np.int64),
    }
    attention = ["x", "x", "x", f"{past_name}.key", f"{past_name}.value", "held", "total"]
    nodes = [
        make("Gather", ["table", "input_ids"], ["rows"]),
        make("Gather", ["positions", "position_ids"], ["offsets"]),
        make("Add", ["rows", "offsets"], ["x"]),
        make("ReduceSum", ["attention_mask", "axis"], ["sum"], keepdims=0),
        make("Sub", ["sum", "one"], ["held64"]),
        make("Cast", ["held64"], ["held"], to=TensorProto.INT32),
        make("Shape", ["attention_mask"], ["length"], start=1, end=2),
        make("Squeeze", ["length"], ["total64"]),
        make("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        make(
            "GroupQueryAttention",
            attention,
            ["mixed", "present.0.key", "present.0.value"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
        ),
        make("Slice", ["mixed", "last", "end", "axis"], ["final"]),
        make("MatMul", ["final", "head"], ["logits"]),
    ]
    cache = [1, HEADS, "past", HEAD_DIM]
    graph = helper.make_graph(
        nodes,
        "hand",
        [
            info("input_ids", i64, [1, "seq"]),
            info("attention_mask", i64, [1, "total_length"]),
            info("position_ids", i64, [1, "seq"]),
            *(info(f"{past_name}.{kind}", f32, cache) for kind in ("key", "value")),
        ],
        [
            info("logits", f32, [1, 1, V]),
            *(
                info(f"present.0.{kind}", f32, [1, HEADS, "grown", HEAD_DIM])
                for kind in ("key", "value")
            ),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "hand.onnx"
    onnx.save(_graph(), path)
    return path


@pytest.fixture(scope="module")
def runtime(path: Path) -> OnnxRuntime:
    return OnnxRuntime(path, context_length=T, vocab_size=V, threads=1)


def _oracle(tokens: Any) -> Any:
    """Logits of the last token, in float64."""
    weights = {name: value.astype(np.float64) for name, value in _weights().items()}
    x = weights["table"][tokens] + weights["positions"][: len(tokens)]
    heads = x.reshape(len(tokens), HEADS, HEAD_DIM)
    scores = np.einsum("hd,shd->hs", heads[-1], heads) / np.sqrt(HEAD_DIM)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    return np.einsum("hs,shd->hd", weight, heads).reshape(D) @ weights["head"]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_order_of_chunks_and_returns_gives_the_oracles_logits(
    runtime: OnnxRuntime, data: st.DataObject
) -> None:
    runtime.reset()
    held: list[int] = []
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(0, min(len(held), T - 1)))
        chunk = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=T - position))
        held = held[:position] + chunk
        logits = runtime.forward(np.array(chunk), position)
        assert logits.shape == (V,)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, _oracle(np.array(held)), atol=1e-4)


def test_logits_are_not_overwritten_by_the_next_call(runtime: OnnxRuntime) -> None:
    runtime.reset()
    first = runtime.forward(np.array([1, 2]), 0)
    kept = first.copy()
    runtime.forward(np.array([3]), 2)
    np.testing.assert_array_equal(first, kept)


def test_it_is_the_runtime_of_the_format_and_says_its_version(path: Path) -> None:
    opened = RUNTIMES.get("onnx")(path, context_length=T, vocab_size=V, threads=2)
    assert (opened.name, opened.version) == ("onnxruntime", onnxruntime.__version__)
    assert (opened.context_length, opened.vocab_size) == (T, V)


def test_tokens_that_do_not_fit_or_leave_a_gap_are_refused(runtime: OnnxRuntime) -> None:
    runtime.reset()
    with pytest.raises(UsageError, match="do not fit"):
        runtime.forward(np.zeros(T + 1, dtype=np.int64), 0)
    with pytest.raises(UsageError, match="empty prompt"):
        runtime.forward(np.zeros(0, dtype=np.int64), 0)
    runtime.forward(np.array([1, 2, 3]), 0)
    with pytest.raises(UsageError, match="the cache holds 3 tokens"):
        runtime.forward(np.array([1]), 5)
    runtime.reset()
    with pytest.raises(UsageError, match="the cache holds 0 tokens"):
        runtime.forward(np.array([1]), 3)


@settings(deadline=None, max_examples=15)
@given(cut=st.floats(0, 0.999), noise=st.binary(max_size=8))
def test_a_damaged_file_is_a_two_line_error(
    path: Path, tmp_path_factory: pytest.TempPathFactory, cut: float, noise: bytes
) -> None:
    data = path.read_bytes()
    damaged = tmp_path_factory.mktemp("damaged") / "model.onnx"
    damaged.write_bytes(data[: int(len(data) * cut)] + noise)
    with pytest.raises(InvalidInputError) as caught:
        OnnxRuntime(damaged, context_length=T, vocab_size=V)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_a_two_line_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot open"):
        OnnxRuntime(tmp_path / "none.onnx", context_length=T, vocab_size=V)


def test_another_interface_or_vocabulary_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(_graph(past_name="cache.0"), other)
    with pytest.raises(InvalidInputError, match="is not a decoder with inputs"):
        OnnxRuntime(other, context_length=T, vocab_size=V)
    with pytest.raises(InvalidInputError, match="gives 19 logits, but a vocabulary of 20"):
        OnnxRuntime(path, context_length=T, vocab_size=V + 1)


def test_running_imports_no_torch(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from mobilekit.runtime.onnx import OnnxRuntime\n"
        f"r = OnnxRuntime(Path(sys.argv[1]), context_length={T}, vocab_size={V}, threads=1)\n"
        "assert r.forward(np.array([1, 2]), 0).shape == (r.vocab_size,)\n"
        "heavy = {'torch', 'transformers', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_id_outside_of_the_vocabulary_is_two_lines(runtime: OnnxRuntime) -> None:
    runtime.reset()
    for token in (-1, V):
        with pytest.raises(UsageError, match=f"token id {token} is not in the vocabulary"):
            runtime.forward(np.array([token]), 0)
