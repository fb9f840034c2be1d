"""The evaluator's operations against torch in float64, on random shapes and at the edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ct = pytest.importorskip("coremltools")

import torch  # noqa: E402 - after the skip
from coremltools.converters.mil import Builder as mb  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from mobilekit.core.errors import NotExecutableError  # noqa: E402
from mobilekit.runtime.mil import MilFunction, load_functions  # noqa: E402
from mobilekit.runtime.mil.tools import quiet  # noqa: E402

RNG = np.random.default_rng(5)
EDGES = np.float32([-1e4, -90, -20, -1, -1e-7, 0, 1e-7, 1, 20, 80, 1e4])


def _random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# name -> (input, how the program computes it, how torch does in float64)
Case = tuple[np.ndarray, Callable[[Any], Any], Callable[[torch.Tensor], torch.Tensor]]
CASES: dict[str, Case] = {
    "sigmoid": (EDGES, lambda x: mb.sigmoid(x=x), torch.sigmoid),
    "silu": (EDGES, lambda x: mb.silu(x=x), F.silu),
    "softplus": (EDGES, lambda x: mb.softplus(x=x), F.softplus),
    "tanh": (EDGES, lambda x: mb.tanh(x=x), torch.tanh),
    "erf": (EDGES, lambda x: mb.erf(x=x), torch.erf),
    "gelu": (EDGES, lambda x: mb.gelu(x=x, mode="EXACT"), F.gelu),
    "gelu_tanh": (
        EDGES[1:-1],
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "exp": (EDGES[:-1], lambda x: mb.exp(x=x), torch.exp),
    "exp2": (EDGES[:-1], lambda x: mb.exp2(x=x), torch.exp2),
    "leaky_relu": (
        EDGES,
        lambda x: mb.leaky_relu(x=x, alpha=np.float32(0.2)),
        lambda x: F.leaky_relu(x, 0.2),
    ),
    "softmax": (
        np.stack([EDGES, EDGES[::-1]]),
        lambda x: mb.softmax(x=x, axis=0),
        lambda x: x.softmax(0),
    ),
    "clip": (
        EDGES,
        lambda x: mb.clip(x=x, alpha=np.float32(-8), beta=np.float32(8)),
        lambda x: x.clamp(-8, 8),
    ),
    "cumsum_first_axis": (
        _random(5, 1, 3),
        lambda x: mb.cumsum(x=x, axis=0),
        lambda x: x.cumsum(0),
    ),
    "cumsum_of_one": (
        _random(3, 1),
        lambda x: mb.cumsum(x=x, axis=-1, exclusive=True),
        lambda x: x * 0,
    ),
    "stack_last": (
        _random(2, 3),
        lambda x: mb.stack(values=(x, x), axis=-1),
        lambda x: torch.stack([x, x], -1),
    ),
    "split_first_axis": (
        _random(7, 2),
        lambda x: mb.split(x=x, split_sizes=[1, 4, 2], axis=0)[1],
        lambda x: x[1:5],
    ),
    "tile_of_one": (
        _random(1, 3, 1),
        lambda x: mb.tile(x=x, reps=[4, 1, 2]),
        lambda x: x.repeat(4, 1, 2),
    ),
    "logical_xor": (
        EDGES,
        lambda x: mb.cast(
            x=mb.logical_xor(x=mb.greater(x=x, y=np.float32(-1)), y=mb.less(x=x, y=np.float32(1))),
            dtype="fp32",
        ),
        lambda x: ((x > -1) ^ (x < 1)).double(),
    ),
    "einsum": (
        _random(2, 3, 4, 3),
        lambda x: mb.einsum(values=(x, x), equation="nchw,nwhu->nchu"),
        lambda x: torch.einsum("nchw,nwhu->nchu", x, x),
    ),
    "conv_depthwise": (
        _random(2, 6, 9),
        lambda x: mb.conv(
            x=x, weight=DEPTHWISE, bias=BIAS6, groups=6, pad_type="custom", pad=[3, 0]
        ),
        lambda x: F.conv1d(F.pad(x, (3, 0)), _double(DEPTHWISE), _double(BIAS6), groups=6),
    ),
    "conv_one_window": (
        _random(1, 6, 4),
        lambda x: mb.conv(x=x, weight=DEPTHWISE, groups=6, pad_type="valid"),
        lambda x: F.conv1d(x, _double(DEPTHWISE), groups=6),
    ),
    "conv_2d": (
        _random(2, 4, 7, 6),
        lambda x: mb.conv(
            x=x,
            weight=PLANAR,
            groups=2,
            strides=[2, 1],
            dilations=[1, 2],
            pad_type="custom",
            pad=[1, 1, 2, 2],
        ),
        lambda x: F.conv2d(
            x, _double(PLANAR), groups=2, stride=(2, 1), dilation=(1, 2), padding=(1, 2)
        ),
    ),
    "pad_constant": (
        _random(2, 3, 4),
        lambda x: mb.pad(x=x, pad=[1, 0, 2, 3], mode="constant", constant_val=np.float32(7)),
        lambda x: F.pad(x, (2, 3, 1, 0), value=7),
    ),
    "pad_reflect": (
        _random(2, 3, 4),
        lambda x: mb.pad(x=x, pad=[2, 3], mode="reflect"),
        lambda x: F.pad(x, (2, 3), mode="reflect"),
    ),
    "pad_replicate": (
        _random(2, 3, 4),
        lambda x: mb.pad(x=x, pad=[2, 3], mode="replicate"),
        lambda x: F.pad(x, (2, 3), mode="replicate"),
    ),
    "reverse": (_random(2, 3, 4), lambda x: mb.reverse(x=x, axes=[0, 2]), lambda x: x.flip(0, 2)),
    "reverse_all": (_random(2, 3), lambda x: mb.reverse(x=x), lambda x: x.flip(0, 1)),
    "slice_update": (
        _random(3, 4, 5),
        lambda x: mb.slice_update(
            x=x,
            update=ROWS,
            begin=[0, 1, -2],
            end=[0, 3, 0],
            begin_mask=[True, False, False],
            end_mask=[True, False, True],
        ),  # fmt: skip
        lambda x: x.index_put(
            (torch.arange(3)[:, None, None], torch.tensor([[[1], [2]]]), torch.tensor([[[3, 4]]])),
            _double(ROWS),
        ),  # fmt: skip
    ),
}
DEPTHWISE, BIAS6, PLANAR, ROWS = _random(6, 1, 4), _random(6), _random(6, 2, 3, 2), _random(3, 2, 2)

_REDUCED = {
    "max": lambda x, over, keep: x.amax(over, keep),
    "mean": lambda x, over, keep: x.mean(over, keep),
    "min": lambda x, over, keep: x.amin(over, keep),
    "sum": lambda x, over, keep: x.sum(over, keep),
    "sum_square": lambda x, over, keep: (x * x).sum(over, keep),
    "l1_norm": lambda x, over, keep: x.abs().sum(over, keep),
    "l2_norm": lambda x, over, keep: (x * x).sum(over, keep).sqrt(),
    "log_sum_exp": lambda x, over, keep: x.logsumexp(over, keep),
}
_AXES = [([0], False), ([1], True), ([0, -1], True), ([-2, 3], False), ([0, 1, 2, 3], False)]


def _reduction(kind: str, axes: list[int], keep: bool) -> Case:
    over = tuple(axes)
    return (
        _random(2, 3, 1, 5),
        lambda x: getattr(mb, f"reduce_{kind}")(x=x, axes=axes, keep_dims=keep),
        lambda x: _REDUCED[kind](x, over, keep),
    )


for _kind in _REDUCED:
    for _axes, _keep in _AXES:
        CASES[f"reduce_{_kind}_{'_'.join(str(a % 4) for a in _axes)}"] = _reduction(
            _kind, _axes, _keep
        )
for _kind, _axis in (("argmax", 1), ("argmin", -1)):
    CASES[f"reduce_{_kind}"] = (
        _random(2, 5, 3),
        lambda x, k=_kind, a=_axis: mb.cast(
            x=getattr(mb, f"reduce_{k}")(x=x, axis=a, keep_dims=True), dtype="fp32"
        ),
        lambda x, k=_kind, a=_axis: getattr(x, k)(a, keepdim=True).double(),
    )
CASES["reduce_prod"] = (
    _random(2, 3),
    lambda x: mb.reduce_prod(x=x, axes=[0]),
    lambda x: x.prod(0),
)


def _double(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(value).double()


def reload(program: Any, path: Path) -> MilFunction:
    with quiet():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
    return load_functions(path)["main"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    given = np.concatenate([x.ravel() for x, _, _ in CASES.values()])
    starts = np.cumsum([0, *(x.size for x, _, _ in CASES.values())])

    @mb.program(input_specs=[mb.TensorSpec(shape=given.shape)], opset_version=ct.target.iOS18)
    def program(given: Any) -> Any:
        results = []
        for (name, (x, make, _)), start in zip(CASES.items(), starts, strict=False):
            part = mb.slice_by_size(x=given, begin=[int(start)], size=[x.size])
            result = make(mb.reshape(x=part, shape=x.shape))
            results.append(mb.identity(x=result, name=f"out_{name}"))
        return tuple(results)

    path = tmp_path_factory.mktemp("mil") / "shapes.mlpackage"
    return reload(program, path)({"given": given}, {})


@pytest.mark.parametrize("name", CASES)
def test_operation_equals_torch_in_float64(evaluated: dict[str, np.ndarray], name: str) -> None:
    x, _, oracle = CASES[name]
    expected = oracle(_double(x)).numpy()
    found = evaluated[f"out_{name}"]
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * min(scale, 1))


def test_padding_by_name_is_refused(tmp_path: Path) -> None:
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 6, 9))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return mb.conv(x=x, weight=DEPTHWISE, groups=6, pad_type="same", name="y")

    function = reload(program, tmp_path / "same.mlpackage")
    with pytest.raises(NotExecutableError, match="pad_type 'same'"):
        function({"x": _random(1, 6, 9)}, {})
