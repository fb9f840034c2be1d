"""The runtime on a small program of its own: logits are the counts of the tokens seen so far."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.runtime import RUNTIMES
from mobilekit.runtime.base import TokenLogits
from mobilekit.runtime.executorch import ExecutorchRuntime

T, V = 24, 19


class Counting(nn.Module):
    """Keeps the tokens in a resident buffer; what was after the position must stay hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.history: Tensor
        self.register_buffer("history", torch.zeros(T, dtype=torch.long))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        positions = input_pos + torch.arange(tokens.shape[1])
        self.history.index_copy_(0, positions, tokens[0])
        visible = torch.arange(T) <= positions[-1:]  # (T,)
        seen = (self.history[:, None] == torch.arange(V)) & visible[:, None]  # (T, V)
        return seen.sum(0).to(torch.float32)[None, None]


@pytest.fixture(scope="module")
def pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from executorch.exir import to_edge

    sequence = torch.export.Dim("seq", min=1, max=T - 1)
    example = (torch.ones(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        captured = torch.export.export(
            Counting(), example, dynamic_shapes=({1: sequence}, None), strict=False
        )
        path = tmp_path_factory.mktemp("counting") / "model.pte"
        with path.open("wb") as file:
            to_edge(captured).to_executorch().write_to_file(file)
    return path


@pytest.fixture(scope="module")
def runtime(pte: Path) -> ExecutorchRuntime:
    return ExecutorchRuntime(pte, context_length=T, vocab_size=V, threads=1)


def _counts(tokens: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    return np.bincount(tokens, minlength=V).astype(np.float32)


def test_it_is_the_registered_runtime_of_pte(runtime: ExecutorchRuntime) -> None:
    assert RUNTIMES.get("pte") is ExecutorchRuntime
    typed: TokenLogits = runtime
    assert (typed.name, typed.context_length, typed.vocab_size) == ("executorch", T, V)
    assert typed.version.split(".")[0].isdigit()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_split_into_calls_gives_the_counts(data: st.DataObject) -> None:
    runtime = _SHARED["runtime"]
    tokens = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=T))
    runtime.reset()
    position = 0
    while position < len(tokens):
        end = data.draw(st.integers(position + 1, len(tokens)))
        logits = runtime.forward(np.array(tokens[position:end]), position)
        assert logits.dtype == np.float32
        assert np.array_equal(logits, _counts(tokens[:end]))
        position = end


_SHARED: dict[str, ExecutorchRuntime] = {}


@pytest.fixture(autouse=True)
def _share(runtime: ExecutorchRuntime) -> None:
    _SHARED["runtime"] = runtime  # hypothesis does not mix with fixtures of a wider scope


def test_going_back_discards_what_was_after(runtime: ExecutorchRuntime) -> None:
    runtime.reset()
    runtime.forward(np.array([1, 2, 3, 4, 5, 6]), 0)
    assert np.array_equal(runtime.forward(np.array([7]), 2), _counts([1, 2, 7]))


def test_reset_needs_no_clearing(runtime: ExecutorchRuntime) -> None:
    runtime.forward(np.array([3] * T), 0)
    runtime.reset()
    assert np.array_equal(runtime.forward(np.array([5]), 0), _counts([5]))


def test_the_whole_context_runs_though_one_call_takes_less(runtime: ExecutorchRuntime) -> None:
    tokens = [i % V for i in range(T)]
    assert np.array_equal(runtime.forward(np.array(tokens), 0), _counts(tokens))


def test_earlier_results_are_not_written_over(runtime: ExecutorchRuntime) -> None:
    first = runtime.forward(np.array([1]), 0)
    kept = first.copy()
    runtime.forward(np.array([2]), 1)
    assert np.array_equal(first, kept)


def test_strided_tokens_are_taken(runtime: ExecutorchRuntime) -> None:
    tokens = np.array([[4, 9], [5, 9], [4, 9]])[:, 0]
    assert np.array_equal(runtime.forward(tokens, 0), _counts([4, 5, 4]))


@pytest.mark.parametrize(("count", "position"), [(0, 0), (T + 1, 0), (1, T), (1, -1)])
def test_what_does_not_fit_is_refused(
    runtime: ExecutorchRuntime, count: int, position: int
) -> None:
    with pytest.raises(UsageError):
        runtime.forward(np.zeros(count, dtype=np.int64), position)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no file"):
        ExecutorchRuntime(tmp_path / "none.pte", context_length=T, vocab_size=V)


@pytest.mark.parametrize("kept", [0, 3, 40, 0.2, 0.5, 0.95])
def test_truncated_file(pte: Path, tmp_path: Path, kept: float) -> None:
    data = pte.read_bytes()
    broken = tmp_path / "model.pte"
    broken.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(InvalidInputError) as caught:
        ExecutorchRuntime(broken, context_length=T, vocab_size=V)
    assert len(str(caught.value).splitlines()) == 2


def test_another_kind_of_file(tmp_path: Path) -> None:
    other = tmp_path / "model.pte"
    other.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 40)
    with pytest.raises(InvalidInputError):
        ExecutorchRuntime(other, context_length=T, vocab_size=V)


def test_a_program_without_forward(tmp_path: Path) -> None:
    from executorch.exir import to_edge

    captured = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    path = tmp_path / "model.pte"
    path.write_bytes(to_edge({"other": captured}).to_executorch().buffer)
    with pytest.raises(InvalidInputError, match="no method 'forward'"):
        ExecutorchRuntime(path, context_length=T, vocab_size=V)


def test_importing_it_does_not_import_the_exporter() -> None:
    code = (
        "import sys, mobilekit.runtime.executorch; "
        "print([m for m in sys.modules if m.startswith(('executorch', 'torchao', 'transformers'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_gap_or_a_wrong_id_is_not_answered_in_silence(runtime: ExecutorchRuntime) -> None:
    runtime.reset()
    runtime.forward(np.array([1, 2, 3]), 0)
    with pytest.raises(UsageError, match="the cache holds 3 tokens"):
        runtime.forward(np.array([1]), 5)
    for token in (-1, V):
        with pytest.raises(UsageError, match=f"token id {token} is not in the vocabulary"):
            runtime.forward(np.array([token]), 3)
