"""Recovery training stopped in every way that a process can be, and continued."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from .conftest import finish, start, steps_saved, stop_at

STEPS = 60
SETTINGS = {"batch_size": 4, "sequence_length": 32, "tokens": 4 * 32 * STEPS, "seed": 3}


def arguments(model: Path, teacher: Path, out: Path, text: Path, **changes: Any) -> list[str]:
    settings = {**SETTINGS, "data": str(text), "checkpoint_every": 1, **changes}
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [str(model), "--teacher", str(teacher), "--out", str(out), "--json", *pairs]


def state_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.training.safetensors")


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    differing = ("seconds", "checkpoint")
    assert {k: v for k, v in first.items() if k not in differing} == {
        k: v for k, v in second.items() if k not in differing
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmoe-uneven", "qwen3"])
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(
    name: str, checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model, teacher = checkpoint(name), checkpoint(name.removesuffix("-uneven"))
    dropped, whole = tmp_path / "dropped", tmp_path / "whole"
    asked = arguments(model, teacher, dropped, text, gradient_accumulation=2)
    chance = random.Random(name)
    for step in sorted(chance.sample(range(1, STEPS - 10), 3)):
        process = start(1, *asked)
        stop_at(process, state_of(dropped), step, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not dropped.exists()
    resumed = finish(start(1, *asked))
    expected = finish(start(1, *arguments(model, teacher, whole, text, gradient_accumulation=2)))
    assert_same(resumed, expected)
    assert weights(dropped) == weights(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"dropped", "whole"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_the_step_it_has_reached(
    number: signal.Signals, checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    out, state = tmp_path / "out", state_of(tmp_path / "out")
    model = checkpoint("qwen3")
    asked = arguments(model, model, out, text, checkpoint_every=7)
    process = start(1, *asked)
    _, errors = stop_at(process, state, 7, number)
    assert process.returncode == 128 + number
    said = "interrupted" if number == signal.SIGINT else "terminated"
    assert errors.splitlines()[-2:] == [
        f"error: {said}",
        "Run the same command again: training goes on.",
    ]
    assert steps_saved(state) >= 7
    assert sorted(path.name for path in tmp_path.iterdir()) == [state.name]
    resumed = finish(start(1, *asked))
    whole = tmp_path / "whole"
    assert_same(resumed, finish(start(1, *arguments(model, model, whole, text))))
    assert weights(out) == weights(whole)


@pytest.mark.slow
def test_a_state_goes_on_after_all_steps_are_done(
    checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    """Killed while the checkpoint is written, nothing is left to train."""
    model, out = checkpoint("qwen3"), tmp_path / "out"
    asked = arguments(model, model, out, text)
    process = start(1, *asked)
    stop_at(process, state_of(out), STEPS - 1, signal.SIGKILL)
    resumed = finish(start(1, *asked))
    assert resumed["steps"] == STEPS
    assert load_file(out / "model.safetensors").keys()
