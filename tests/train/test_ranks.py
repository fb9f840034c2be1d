"""Recovery training on several processes, started by torchrun, against the same on one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mobilekit.core.errors import UsageError
from mobilekit.train.ranks import ALONE, Ranks, launched
from mobilekit.train.recover import RecoverConfig, check_ranks

from .conftest import finish, start, stop_at
from .test_resume import assert_same, state_of, weights

STEPS = 50


def arguments(model: Path, teacher: Path, out: Path, text: Path, **changes: Any) -> list[str]:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "sequence_length": 16,
        "tokens": 8 * 16 * STEPS,
        "data": str(text),
        **changes,
    }
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [str(model), "--teacher", str(teacher), "--out", str(out), "--json", *pairs]


def assert_close(first: dict[str, Any], second: dict[str, Any], tolerance: float = 1e-5) -> None:
    one, other = (torch.tensor(result["losses"], dtype=torch.float64) for result in (first, second))
    assert len(one) == STEPS
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
    for key in ("heldout_loss_before", "heldout_loss_after"):
        assert first[key] == pytest.approx(second[key], abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen3", {}),
        ("olmoe-uneven", {"balance_weight": 0.5}),
        ("mamba2-uneven", {"gradient_accumulation": 2, "max_gradient_norm": 0.1}),
    ],
)
def test_the_loss_does_not_depend_on_the_number_of_ranks(
    name: str,
    settings: dict[str, Any],
    checkpoint: Callable[[str], Path],
    text: Path,
    tmp_path: Path,
) -> None:
    model, teacher = checkpoint(name), checkpoint(name.removesuffix("-uneven"))
    results, tensors = {}, {}
    for ranks in (1, 2, 4):
        out = tmp_path / str(ranks)
        results[ranks] = finish(start(ranks, *arguments(model, teacher, out, text, **settings)))
        tensors[ranks] = load_file(out / "model.safetensors")
    assert results[1]["losses"][-1] < results[1]["losses"][0]
    for ranks in (2, 4):
        assert_close(results[ranks], results[1])
        assert tensors[ranks].keys() == tensors[1].keys()
        for key, expected in tensors[1].items():
            torch.testing.assert_close(tensors[ranks][key], expected, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_killed_ranks_go_on_together_or_alone(
    checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model, teacher = checkpoint("olmoe-uneven"), checkpoint("olmoe")
    whole = finish(start(2, *arguments(model, teacher, tmp_path / "whole", text)))
    for ranks in (2, 1):
        out = tmp_path / f"on{ranks}"
        asked = arguments(model, teacher, out, text, checkpoint_every=1)
        process = start(2, *asked)
        stop_at(process, state_of(out), 20, signal.SIGKILL)
        resumed = finish(start(ranks, *asked))
        if ranks == 2:
            assert_same(resumed, whole)
            assert weights(out) == weights(tmp_path / "whole")
        else:
            assert_close(resumed, whole)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_at_the_same_step(
    checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model, out = checkpoint("qwen3"), tmp_path / "out"
    asked = arguments(model, model, out, text, checkpoint_every=5)
    process = start(2, *asked)
    stop_at(process, state_of(out), 5, signal.SIGINT)
    assert process.returncode != 0
    assert not out.exists()
    assert state_of(out).exists()
    assert_same(
        finish(start(2, *asked)),
        finish(start(2, *arguments(model, model, tmp_path / "whole", text))),
    )


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused_once(
    checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model = checkpoint("qwen3")
    process = start(2, *arguments(model, model, tmp_path / "out", text, batch_size=3))
    out, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert out == ""
    assert errors.count("error: batch_size 3 cannot be shared by 2 ranks") == 1
    assert list(tmp_path.iterdir()) == []


def test_ranks_must_divide_the_batch() -> None:
    check_ranks(RecoverConfig(batch_size=8, gradient_accumulation=2), Ranks(size=4))
    with pytest.raises(UsageError, match="batch_size 8 cannot be shared by 3 ranks\n"):
        check_ranks(RecoverConfig(batch_size=8), Ranks(size=3))
    with pytest.raises(UsageError, match="8 cannot be shared by 4 ranks, each in 4 parts"):
        check_ranks(RecoverConfig(batch_size=8, gradient_accumulation=4), Ranks(size=4))


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched("cpu") as ranks:
        assert ranks is ALONE
        assert ranks.is_first
        assert ranks.sums([1.0, 2.0]) == [1.0, 2.0]
        assert ranks.of_first("a") == "a"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but RANK"), launched("cpu"):
        pass


def test_one_process_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mobilekit.core import console

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("1", 1), ("0", 6)):
        monkeypatch.setenv("RANK", rank)
        console.status("status")
        console.warn("warning")
        console.error("wrong with the input", "hint")
        console.error("wrong here", "hint", on_every_rank=rank == "1")
        console.emit_json({"a": 1})
        said = capsys.readouterr()
        if rank == "1":
            assert said == ("", "error: wrong here\nhint\n")
        else:
            assert json.loads(said.out) == {"a": 1}
            assert len(said.err.splitlines()) == lines


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29999")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with (
        pytest.raises(UsageError, match="more processes on this machine than its 1 GPUs"),
        launched("cuda"),
    ):
        pass
