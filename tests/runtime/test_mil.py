"""The evaluator against torch, operation by operation, on programs that were saved and reloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ct = pytest.importorskip("coremltools")

import torch  # noqa: E402 - after the skip
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from mobilekit.runtime.mil import MilFunction, UnsupportedMilOp, load_functions  # noqa: E402
from mobilekit.runtime.mil.tools import quiet  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
Y = RNG.normal(size=(2, 3, 4)).astype(np.float32)
I = np.array([[2, 0], [1, 1]], np.int32)  # noqa: E741
WEIGHT = RNG.normal(size=(5, 4)).astype(np.float32)
BIAS = RNG.normal(size=5).astype(np.float32)
Case = tuple[Callable[..., Any], Callable[..., Any]]


def _positive(x: Any) -> Any:
    return mb.add(x=mb.abs(x=x), y=np.float32(0.5))


# name -> (how the program computes it, how torch does), of x, y (2, 3, 4) and i (2, 2)
CASES: dict[str, Case] = {
    "abs": (lambda x, y, i: mb.abs(x=x), lambda x, y, i: x.abs()),
    "add": (lambda x, y, i: mb.add(x=x, y=y), lambda x, y, i: x + y),
    "cast_int": (lambda x, y, i: mb.cast(x=x, dtype="int32"), lambda x, y, i: x.int()),
    "ceil": (lambda x, y, i: mb.ceil(x=x), lambda x, y, i: x.ceil()),
    "clip": (
        lambda x, y, i: mb.clip(x=x, alpha=np.float32(-0.3), beta=np.float32(0.4)),
        lambda x, y, i: x.clamp(-0.3, 0.4),
    ),
    "concat": (
        lambda x, y, i: mb.concat(values=(x, y, X), axis=-1),
        lambda x, y, i: torch.cat([x, y, x], -1),
    ),
    "concat_interleave": (
        lambda x, y, i: mb.concat(values=(x, y), axis=1, interleave=True),
        lambda x, y, i: torch.stack([x, y], 2).flatten(1, 2),
    ),
    "cos": (lambda x, y, i: mb.cos(x=x), lambda x, y, i: x.cos()),
    "cumsum": (lambda x, y, i: mb.cumsum(x=x, axis=1), lambda x, y, i: x.cumsum(1)),
    "cumsum_reverse": (
        lambda x, y, i: mb.cumsum(x=x, axis=2, exclusive=True, reverse=True),
        lambda x, y, i: x.flip(2).cumsum(2).flip(2) - x,
    ),
    "equal": (
        lambda x, y, i: mb.cast(x=mb.equal(x=i, y=np.int32(1)), dtype="int32"),
        lambda x, y, i: (i == 1).int(),
    ),
    "erf": (lambda x, y, i: mb.erf(x=x), lambda x, y, i: x.erf()),
    "exp": (lambda x, y, i: mb.exp(x=x), lambda x, y, i: x.exp()),
    "expand_dims": (
        lambda x, y, i: mb.expand_dims(x=x, axes=[1, -1]),
        lambda x, y, i: x[:, None, :, :, None],
    ),
    "floor": (lambda x, y, i: mb.floor(x=x), lambda x, y, i: x.floor()),
    "floor_div": (
        lambda x, y, i: mb.floor_div(x=i, y=np.int32(2)),
        lambda x, y, i: i // 2,
    ),
    "gather": (lambda x, y, i: mb.gather(x=x, indices=i, axis=1), lambda x, y, i: x[:, i.long()]),
    "gather_batch": (
        lambda x, y, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
        lambda x, y, i: torch.stack([x[b, i[b].long()] for b in range(2)]),
    ),
    "gather_table": (
        lambda x, y, i: mb.gather(x=WEIGHT, indices=i, axis=0),
        lambda x, y, i: torch.from_numpy(WEIGHT)[i.long()],
    ),
    "gather_along_axis": (
        lambda x, y, i: mb.gather_along_axis(x=x, indices=np.ones((2, 3, 1), np.int32) * 2, axis=2),
        lambda x, y, i: x[:, :, 2:3],
    ),
    "gelu": (lambda x, y, i: mb.gelu(x=x, mode="EXACT"), lambda x, y, i: F.gelu(x)),
    "gelu_tanh": (
        lambda x, y, i: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x, y, i: F.gelu(x, approximate="tanh"),
    ),
    "inverse": (
        lambda x, y, i: mb.inverse(x=_positive(x), epsilon=np.float32(1e-3)),
        lambda x, y, i: 1 / (x.abs() + 0.5 + 1e-3),
    ),
    "layer_norm": (
        lambda x, y, i: mb.layer_norm(
            x=x, axes=[-1], gamma=WEIGHT[0], beta=WEIGHT[1], epsilon=np.float32(1e-5)
        ),
        lambda x, y, i: F.layer_norm(
            x, (4,), torch.from_numpy(WEIGHT[0]), torch.from_numpy(WEIGHT[1]), 1e-5
        ),
    ),
    "linear": (
        lambda x, y, i: mb.linear(x=x, weight=WEIGHT, bias=BIAS),
        lambda x, y, i: F.linear(x, torch.from_numpy(WEIGHT), torch.from_numpy(BIAS)),
    ),
    "log": (
        lambda x, y, i: mb.log(x=_positive(x), epsilon=np.float32(1e-3)),
        lambda x, y, i: (x.abs() + 0.5 + 1e-3).log(),
    ),
    "logical": (
        lambda x, y, i: mb.cast(
            x=mb.logical_or(
                x=mb.logical_and(x=mb.greater(x=x, y=y), y=mb.greater(x=x, y=np.float32(0))),
                y=mb.logical_not(x=mb.less(x=y, y=np.float32(0.5))),
            ),
            dtype="int32",
        ),
        lambda x, y, i: (((x > y) & (x > 0)) | ~(y < 0.5)).int(),
    ),
    "less_equal": (
        lambda x, y, i: mb.cast(x=mb.less_equal(x=i, y=np.int32(1)), dtype="int32"),
        lambda x, y, i: (i <= 1).int(),
    ),
    "matmul": (
        lambda x, y, i: mb.matmul(x=x, y=y, transpose_y=True),
        lambda x, y, i: x @ y.mT,
    ),
    "matmul_tx": (
        lambda x, y, i: mb.matmul(x=x, y=y, transpose_x=True),
        lambda x, y, i: x.mT @ y,
    ),
    "maximum": (lambda x, y, i: mb.maximum(x=x, y=y), lambda x, y, i: torch.maximum(x, y)),
    "minimum": (lambda x, y, i: mb.minimum(x=x, y=y), lambda x, y, i: torch.minimum(x, y)),
    "mod": (lambda x, y, i: mb.mod(x=i, y=np.int32(2)), lambda x, y, i: i % 2),
    "mul": (lambda x, y, i: mb.mul(x=x, y=y), lambda x, y, i: x * y),
    "not_equal": (
        lambda x, y, i: mb.cast(x=mb.not_equal(x=i, y=np.int32(1)), dtype="int32"),
        lambda x, y, i: (i != 1).int(),
    ),
    "one_hot": (
        lambda x, y, i: mb.one_hot(indices=i, one_hot_vector_size=3),
        lambda x, y, i: F.one_hot(i.long(), 3).int(),
    ),
    "one_hot_axis": (
        lambda x, y, i: mb.one_hot(
            indices=i, one_hot_vector_size=3, axis=1, on_value=np.int32(5), off_value=np.int32(2)
        ),
        lambda x, y, i: (F.one_hot(i.long(), 3).movedim(-1, 1) * 3 + 2).int(),
    ),
    "pow": (
        lambda x, y, i: mb.pow(x=_positive(x), y=np.float32(1.7)),
        lambda x, y, i: (x.abs() + 0.5) ** 1.7,
    ),
    "real_div": (
        lambda x, y, i: mb.real_div(x=x, y=_positive(y)),
        lambda x, y, i: x / (y.abs() + 0.5),
    ),
    "reduce_max": (
        lambda x, y, i: mb.reduce_max(x=x, axes=[0, 2]),
        lambda x, y, i: x.amax((0, 2)),
    ),
    "reduce_mean": (
        lambda x, y, i: mb.reduce_mean(x=x, axes=[-1], keep_dims=True),
        lambda x, y, i: x.mean(-1, keepdim=True),
    ),
    "reduce_min": (lambda x, y, i: mb.reduce_min(x=x, axes=[1]), lambda x, y, i: x.amin(1)),
    "reduce_sum": (
        lambda x, y, i: mb.reduce_sum(x=x, axes=[1], keep_dims=False),
        lambda x, y, i: x.sum(1),
    ),
    "relu": (lambda x, y, i: mb.relu(x=x), lambda x, y, i: x.relu()),
    "reshape_keep": (
        lambda x, y, i: mb.reshape(x=x, shape=[0, -1, 2]),
        lambda x, y, i: x.reshape(2, -1, 2),
    ),
    "round": (lambda x, y, i: mb.round(x=x), lambda x, y, i: x.round()),
    "rsqrt": (
        lambda x, y, i: mb.rsqrt(x=_positive(x), epsilon=np.float32(1e-3)),
        lambda x, y, i: (x.abs() + 0.5 + 1e-3).rsqrt(),
    ),
    "sdpa": (
        lambda x, y, i: mb.scaled_dot_product_attention(query=x, key=y, value=x),
        lambda x, y, i: F.scaled_dot_product_attention(x, y, x),
    ),
    "sdpa_mask": (
        lambda x, y, i: mb.scaled_dot_product_attention(
            query=x, key=y, value=y, attn_mask=np.tril(np.ones((2, 3, 3), bool))
        ),
        lambda x, y, i: F.scaled_dot_product_attention(x, y, y, is_causal=True),
    ),
    "sdpa_additive": (
        lambda x, y, i: mb.scaled_dot_product_attention(
            query=x, key=y, value=y, attn_mask=X[:, :, :3].copy()
        ),
        lambda x, y, i: F.scaled_dot_product_attention(x, y, y, attn_mask=x[:, :, :3]),
    ),
    "select": (
        lambda x, y, i: mb.select(cond=mb.greater_equal(x=x, y=y), a=x, b=y),
        lambda x, y, i: torch.where(x >= y, x, y),
    ),
    "shape": (
        lambda x, y, i: mb.add(x=mb.shape(x=x), y=mb.reduce_sum(x=i, axes=[0, 1])),
        lambda x, y, i: torch.tensor(x.shape).int() + i.sum().int(),
    ),
    "sigmoid": (lambda x, y, i: mb.sigmoid(x=x), lambda x, y, i: x.sigmoid()),
    "sign": (lambda x, y, i: mb.sign(x=x), lambda x, y, i: x.sign()),
    "silu": (lambda x, y, i: mb.silu(x=x), lambda x, y, i: F.silu(x)),
    "sin": (lambda x, y, i: mb.sin(x=x), lambda x, y, i: x.sin()),
    "slice": (
        lambda x, y, i: mb.slice_by_index(
            x=x,
            begin=[1, 0, -3],
            end=[0, 3, -1],
            stride=[1, 2, 1],
            begin_mask=[False, True, False],
            end_mask=[False, False, True],
            squeeze_mask=[True, False, False],
        ),
        lambda x, y, i: x[1, ::2, -3:],
    ),
    "slice_backwards": (
        lambda x, y, i: mb.slice_by_index(
            x=x,
            begin=[0, 0, 0],
            end=[0, 0, 0],
            stride=[1, 1, -1],
            begin_mask=[True] * 3,
            end_mask=[True] * 3,
        ),
        lambda x, y, i: x.flip(2),
    ),
    "slice_by_size": (
        lambda x, y, i: mb.slice_by_size(x=x, begin=[0, 1, 2], size=[2, 1, -1]),
        lambda x, y, i: x[:, 1:2, 2:],
    ),
    "softmax": (lambda x, y, i: mb.softmax(x=x, axis=1), lambda x, y, i: x.softmax(1)),
    "softplus": (lambda x, y, i: mb.softplus(x=x), lambda x, y, i: F.softplus(x)),
    "split": (
        lambda x, y, i: mb.split(x=x, split_sizes=[1, 3], axis=-1)[1],
        lambda x, y, i: x[..., 1:],
    ),
    "split_equal": (
        lambda x, y, i: mb.split(x=x, num_splits=2, axis=-1)[1],
        lambda x, y, i: x[..., 2:],
    ),
    "sqrt": (lambda x, y, i: mb.sqrt(x=_positive(x)), lambda x, y, i: (x.abs() + 0.5).sqrt()),
    "square": (lambda x, y, i: mb.square(x=x), lambda x, y, i: x * x),
    "squeeze": (
        lambda x, y, i: mb.squeeze(x=mb.reduce_sum(x=x, axes=[1], keep_dims=True), axes=[1]),
        lambda x, y, i: x.sum(1),
    ),
    "stack": (
        lambda x, y, i: mb.stack(values=(x, y), axis=1),
        lambda x, y, i: torch.stack([x, y], 1),
    ),
    "sub": (lambda x, y, i: mb.sub(x=x, y=y), lambda x, y, i: x - y),
    "tanh": (lambda x, y, i: mb.tanh(x=x), lambda x, y, i: x.tanh()),
    "tile": (lambda x, y, i: mb.tile(x=x, reps=[2, 1, 3]), lambda x, y, i: x.repeat(2, 1, 3)),
    "topk_values": (
        lambda x, y, i: mb.topk(x=x, k=2, axis=-1)[0],
        lambda x, y, i: x.topk(2).values,
    ),
    "topk_indices": (
        lambda x, y, i: mb.topk(x=x, k=2, axis=1, ascending=True)[1],
        lambda x, y, i: x.topk(2, dim=1, largest=False).indices.int(),
    ),
    "transpose": (
        lambda x, y, i: mb.transpose(x=x, perm=[2, 0, 1]),
        lambda x, y, i: x.permute(2, 0, 1),
    ),
}


def save(program: Any, path: Path, precision: str = "FLOAT32") -> Path:
    """Write a MIL program as it is: no pass may simplify what a test wants to see evaluated."""
    with quiet():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=getattr(ct.precision, precision),
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def reload(program: Any, path: Path) -> MilFunction:
    return load_functions(save(program, path))["main"]


@pytest.fixture(scope="module")
def every_operation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    specs = [mb.TensorSpec(shape=s) for s in (X.shape, Y.shape)]
    specs.append(mb.TensorSpec(shape=I.shape, dtype=types.int32))

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x: Any, y: Any, i: Any) -> Any:
        results = [(name, build(x, y, i)) for name, (build, _) in CASES.items()]
        return tuple(mb.identity(x=value, name=f"out_{name}") for name, value in results)

    function = reload(program, tmp_path_factory.mktemp("mil") / "all.mlpackage")
    return function({"x": X, "y": Y, "i": I}, {})


@pytest.mark.parametrize("name", CASES)
def test_operation_equals_torch(every_operation: dict[str, Any], name: str) -> None:
    expected = CASES[name][1](*(torch.from_numpy(a) for a in (X, Y, I))).numpy()
    found = every_operation[f"out_{name}"]
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_topk_breaks_ties_by_the_lowest_index(tmp_path: Path) -> None:
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 6))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return mb.identity(x=mb.topk(x=x, k=3, axis=-1)[1], name="index")

    function = reload(program, tmp_path / "ties.mlpackage")
    x = np.array([[1, 3, 2, 3, 2, 2]], np.float32)
    assert function({"x": x}, {})["index"].tolist() == [[1, 3, 2]]


def test_fp16_accumulates_in_fp32_and_rounds_once(tmp_path: Path) -> None:
    weight = RNG.normal(size=(3, 512)).astype(np.float16)
    x = RNG.normal(size=(2, 512)).astype(np.float16)

    @mb.program(
        input_specs=[mb.TensorSpec(shape=x.shape, dtype=types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any) -> Any:
        y = mb.linear(x=x, weight=weight)
        return mb.identity(x=y, name="y"), mb.reduce_sum(x=x, axes=[1], name="sum")

    function = reload(program, tmp_path / "half.mlpackage")
    found = function({"x": x}, {})
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert found["y"].dtype == np.float16
    # within one step of fp16 of the exact value; an fp16 accumulator would be far off
    np.testing.assert_allclose(found["y"], exact, rtol=2**-10, atol=2e-4)
    np.testing.assert_allclose(found["sum"], x.astype(np.float64).sum(1), rtol=2**-10, atol=2e-4)


@pytest.mark.parametrize("scales", [(6, 1), (6, 2), (1, 1), (3, 4)])
@pytest.mark.parametrize("with_offset", [False, True])
def test_compressed_constant_is_decompressed_block_by_block(
    tmp_path: Path, scales: tuple[int, int], with_offset: bool
) -> None:
    data = RNG.integers(-127, 128, size=(6, 8)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.1, size=scales).astype(np.float16)
    offset = RNG.integers(-3, 4, size=scales).astype(np.int8)

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, 8), dtype=types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any) -> Any:
        extra = {"offset": offset} if with_offset else {}
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=scale, **extra)
        return mb.linear(x=x, weight=weight, name="y")

    function = reload(program, tmp_path / "int8.mlpackage")
    expected = np.zeros((6, 8), np.float16)
    for row, column in np.ndindex(6, 8):  # the definition, entry by entry
        at = row * scales[0] // 6, column * scales[1] // 8
        shift = int(offset[at]) if with_offset else 0
        expected[row, column] = np.float32(int(data[row, column]) - shift) * np.float32(scale[at])
    for column in range(8):
        one = np.zeros((1, 8), np.float16)
        one[0, column] = 1
        np.testing.assert_array_equal(function({"x": one}, {})["y"][0], expected[:, column])


def _counter() -> Any:
    @mb.program(
        input_specs=[
            mb.TensorSpec(shape=(1,), dtype=types.fp16),
            mb.StateTensorSpec((1,), dtype=types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, total: Any) -> Any:
        before = mb.read_state(input=total)
        after = mb.coreml_update_state(state=total, value=mb.add(x=before, y=x, name="sum"))
        return mb.mul(x=after, y=np.float16(2), name="twice")

    return program


def test_states_start_at_zero_persist_and_are_fp16(tmp_path: Path) -> None:
    function = reload(_counter(), tmp_path / "state.mlpackage")
    states = function.zero_states()
    one = {"x": np.ones(1, np.float16)}
    assert [float(function(one, states)["twice"][0]) for _ in range(3)] == [2, 4, 6]
    assert states["total"].dtype == np.float16
    assert float(function(one, function.zero_states())["twice"][0]) == 2


def test_intermediate_values_can_be_tapped(tmp_path: Path) -> None:
    function = reload(_counter(), tmp_path / "tap.mlpackage")
    name = next(n for n in function.names if n.startswith("sum") or n == "coreml_update_state_0")
    found = function({"x": np.full(1, 3, np.float16)}, function.zero_states(), (name,))
    assert float(found[name][0]) == 3
    assert set(found) == {name, "twice"}


def test_unknown_operation_is_named(tmp_path: Path) -> None:
    @mb.program(input_specs=[mb.TensorSpec(shape=(2,))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return mb.atanh(x=x, name="odd")

    with pytest.raises(UnsupportedMilOp, match=r"'atanh' \(odd\)"):
        reload(program, tmp_path / "odd.mlpackage")


def test_operation_that_nothing_needs_is_not_evaluated(tmp_path: Path) -> None:
    @mb.program(input_specs=[mb.TensorSpec(shape=(2,))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        mb.atanh(x=x)
        return mb.add(x=x, y=np.float32(1), name="y")

    function = reload(program, tmp_path / "dead.mlpackage")
    np.testing.assert_array_equal(function({"x": np.zeros(2, np.float32)}, {})["y"], [1, 1])
