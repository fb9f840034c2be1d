"""Every kernel against sums in exact arithmetic, and what happens where none can be built."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mobilekit.compress.aimer import kernel, native, scan_file
from mobilekit.compress.aimer.kernel import Kernel, choose_kernel, total, unit_sums
from mobilekit.compress.aimer.score import aimer_scores, rounded, weight_sums
from mobilekit.core import console
from mobilekit.models.blocks import BlockReader
from mobilekit.models.weights import read_header

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HAS_COMPILER = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")
KERNELS = [pytest.param("native", marks=needs_compiler), "eager"]
CPU = torch.device("cpu")


def exact(weights: Tensor) -> list[tuple[float, float]]:
    """Σ|w| and Σw² of each unit, correctly rounded."""
    units = weights.double().reshape(len(weights), -1).tolist()
    return [(math.fsum(map(abs, u)), math.fsum(w * w for w in u)) for u in units]


def bound(weights: Tensor) -> float:
    """The worst relative error of a sum: four roundings to float32 where they are allowed."""
    narrow = weights.element_size() == 2 and weights.shape[-1] >= native.BLOCK
    return 4 * 2.0**-24 if narrow else 1e-14


def check(weights: Tensor, name: Kernel) -> None:
    sums = unit_sums(weights, name)
    assert sums.shape == (len(weights), 4)
    assert sums.dtype == torch.float64
    for found, expected in zip(sums.tolist(), exact(weights), strict=True):
        assert found[0] + found[1] == pytest.approx(expected[0], rel=bound(weights), abs=0)
        assert found[2] + found[3] == pytest.approx(expected[1], rel=bound(weights), abs=0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=2),
    units=st.integers(1, 7),
    width=st.integers(1, 2 * native.BLOCK + 200),
    exponent=st.integers(-7, 4),
    seed=st.integers(0, 99),
)
def test_equals_exact_sums(
    name: Kernel,
    dtype: torch.dtype,
    shape: list[int],
    units: int,
    width: int,
    exponent: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(units, *shape, width, generator=generator)
    check((drawn * 10.0**exponent).to(dtype), name)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_finite_value_of_sixteen_bits(name: Kernel, dtype: torch.dtype) -> None:
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    values = values[values.isfinite()]
    check(values[:, None], name)
    check(values[None], name)


@pytest.mark.parametrize("name", KERNELS)
def test_extremes_of_float32(name: Kernel) -> None:
    info = torch.finfo(torch.float32)
    values = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal / 4, 0.0, -0.0, 1.5])
    check(values[:, None], name)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 31, 32, 69])
def test_what_is_not_finite_stays_so(
    name: Kernel, dtype: torch.dtype, value: float, place: int
) -> None:
    weights = torch.ones(3, 2, 70, dtype=dtype)
    weights[1, 1, place] = value
    finite = unit_sums(weights, name).isfinite().all(dim=1).tolist()
    assert finite == [True, False, True]


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=5), st.integers(0, 99))
def test_it_does_not_matter_how_rows_are_cut(name: Kernel, cuts: list[int], seed: int) -> None:
    weights = torch.randn(2, 31, 77, generator=torch.Generator().manual_seed(seed))
    bounds = [0, *sorted(set(cuts)), 31]
    parts = [unit_sums(weights[:, a:b], name) for a, b in zip(bounds, bounds[1:], strict=False)]
    pairs = (total(parts), unit_sums(weights, name))
    first, second = ([row[:, 0] + row[:, 1], row[:, 2] + row[:, 3]] for row in pairs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    reversed_parts = total(parts[::-1])
    assert torch.equal(reversed_parts, total(parts))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("units", [1, 2, 9])
def test_threads_change_nothing(units: int, threads: int) -> None:
    weights = torch.randn(units, 60, 33)
    alone = unit_sums(weights, "native")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = unit_sums(weights, "native")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[:, 0] + alone[:, 1], together[:, 0] + together[:, 1])
    assert torch.equal(alone[:, 2] + alone[:, 3], together[:, 2] + together[:, 3])


@pytest.mark.parametrize("name", KERNELS)
def test_views_that_are_not_contiguous(name: Kernel) -> None:
    weights = torch.randn(6, 12, 20).to(torch.bfloat16)
    for view in (weights.transpose(0, 1), weights[:, ::2], weights.movedim(2, 0)):
        check(view, name)


@pytest.mark.parametrize("name", KERNELS)
def test_no_units_and_no_weights(name: Kernel) -> None:
    assert unit_sums(torch.zeros(0, 3, 4), name).shape == (0, 4)
    assert unit_sums(torch.zeros(2, 0, 4), name).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("exponent", [-38, -30, -12, 12, 18, 30, 37])
def test_rows_whose_squares_float32_cannot_hold(name: Kernel, exponent: int) -> None:
    weights = torch.randn(3, 2, native.BLOCK + 5).to(torch.bfloat16)
    weights[1, 0] *= 10.0**exponent
    weights[2, 1, 7] *= 10.0**exponent
    check(weights, name)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 4 * native.BLOCK), exponent=st.integers(-30, 30), seed=st.integers(0, 99)
)
def test_kernels_round_in_the_same_places(
    dtype: torch.dtype, width: int, exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, 2, width, generator=generator)
    weights = (weights * 10.0 ** (exponent if dtype != torch.float16 else exponent / 8)).to(dtype)
    first, second = (unit_sums(weights, name) for name in ("native", "eager"))
    for column in (0, 2):
        pair = [sums[:, column] + sums[:, column + 1] for sums in (first, second)]
        torch.testing.assert_close(*pair, rtol=1e-14, atol=0)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_rank_alike(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((96, 64), (3, 2 * native.BLOCK + 64))
    tensors = [torch.randn(32, *shape, generator=generator).to(dtype) for shape in shapes]
    found = [rounded(aimer_scores(weight_sums(tensors, name))) for name in ("native", "eager")]
    assert found[0] == found[1]


@pytest.mark.slow
@needs_compiler
def test_fused_kernel_ranks_like_the_others() -> None:
    tensors = [torch.randn(8, 24, 600).to(torch.bfloat16), torch.randn(8, 48, 300).half()]
    expected = rounded(aimer_scores(weight_sums(tensors, "eager")))
    assert rounded(aimer_scores(weight_sums(tensors, "fused"))) == expected


def test_float64_goes_the_eager_way() -> None:
    assert choose_kernel(CPU, torch.float64, 1 << 40) == "eager"
    check(torch.randn(3, 4, 5, dtype=torch.float64), choose_kernel(CPU, torch.float64, 0))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache without a library, of which this process knows nothing either."""
    monkeypatch.setenv("MOBILEKIT_CACHE", str(tmp_path / "cache"))
    for cached in (native.library, native._file, kernel._tell):
        cached.cache_clear()
    yield tmp_path / "cache" / "kernels"
    for cached in (native.library, native._file, kernel._tell):
        cached.cache_clear()


@needs_compiler
def test_a_compiler_is_run_only_for_enough_work_and_only_once(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_kernel(CPU, torch.bfloat16, 1 << 20) == "eager"
    assert not fresh.exists()
    assert choose_kernel(CPU, torch.bfloat16, 1 << 30) == "native"
    (built,) = fresh.iterdir()
    monkeypatch.setenv("PATH", "")  # no compiler from here on
    native.library.cache_clear()
    assert choose_kernel(CPU, torch.bfloat16, 1) == "native"
    assert list(fresh.iterdir()) == [built]
    check(torch.randn(2, 3, 40), "native")


def test_without_a_compiler_it_is_eager_and_said(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    console.configure(verbose=True)
    try:
        weights = torch.randn(2, 3000, 3000)
        assert unit_sums(weights)[0, 0] == pytest.approx(exact(weights[:1])[0][0], rel=1e-13)
    finally:
        console.configure()
    told = capsys.readouterr().err
    assert "no C compiler" in told
    assert "with the eager kernel" in told


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails(fresh: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CC", compiler)
    assert choose_kernel(CPU, torch.bfloat16, 1 << 30) == "eager"
    assert not list(fresh.iterdir())


@needs_compiler
def test_a_library_that_is_damaged_is_built_anew(fresh: Path) -> None:
    fresh.mkdir(parents=True)
    native._file().write_bytes(b"not a library")
    assert choose_kernel(CPU, torch.bfloat16, 1) == "native"
    assert native._file().stat().st_size > 1000
    check(torch.randn(2, 3, 40), "native")


def test_without_a_compiler_a_damaged_library_is_not_used(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.mkdir(parents=True)
    native._file().write_bytes(b"not a library")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert choose_kernel(CPU, torch.bfloat16, 1 << 30) == "eager"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["eager", "fused"])
def test_gpu_kernels_agree(name: Kernel) -> None:
    weights = torch.randn(16, 64, 256).to(torch.bfloat16)
    found = unit_sums(weights.cuda(), name)
    torch.testing.assert_close(
        found[:, ::2], unit_sums(weights, "eager")[:, ::2], rtol=1e-13, atol=0
    )


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_stored_tensors_have_the_sums_of_those_in_memory(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dim = data.draw(st.none() | st.integers(0, len(shape) - 1))
    block = data.draw(st.sampled_from([8, 40, 1 << 20]))
    dtype = data.draw(st.sampled_from(DTYPES))
    tensor = torch.randn(shape).to(dtype)
    file = tmp_path_factory.mktemp("sums") / "model.safetensors"
    save_file({"x": tensor}, file)
    with pytest.MonkeyPatch.context() as patch, BlockReader() as reader:
        patch.setattr(scan_file, "BLOCK", block)
        found = scan_file._tensor_sums(
            lambda start, nbytes: reader.read(file, start, nbytes),
            read_header(file)["x"],
            dim,
            CPU,
        )
    units = tensor[None] if dim is None else tensor.movedim(dim, 0)
    for sums, expected in zip(found.tolist(), exact(units), strict=True):
        assert sums[0] + sums[1] == pytest.approx(expected[0], rel=1e-14, abs=0)
        assert sums[2] + sums[3] == pytest.approx(expected[1], rel=1e-14, abs=0)
