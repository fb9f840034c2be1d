import math
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mobilekit.core.errors import InvalidInputError, OutputError
from mobilekit.train.loop import LoopSettings, build_optimizer, learning_rate_at, run_loop
from mobilekit.train.objectives import (
    balance_loss,
    distillation_loss,
    expert_load,
    next_token_loss,
)

SETTINGS = LoopSettings(steps=20, learning_rate=0.05, seed=3, warmup_steps=4, checkpoint_every=5)


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def fit_the_sum(
    model: nn.Module, step: int, generator: torch.Generator, *, stop_at: int | None = None
) -> Tensor:
    if step == stop_at:
        raise KeyboardInterrupt
    inputs = torch.randn(16, 4, generator=generator)
    return (model(inputs).squeeze(1) - inputs.sum(dim=1)).square().mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_learning_rate_warms_up_then_falls_along_a_cosine():
    settings = LoopSettings(steps=110, learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1)
    assert learning_rate_at(0, settings) == pytest.approx(0.1)
    assert learning_rate_at(9, settings) == pytest.approx(1.0)
    assert learning_rate_at(10, settings) == pytest.approx(1.0)
    assert learning_rate_at(60, settings) == pytest.approx(0.55)
    assert learning_rate_at(110, settings) == pytest.approx(0.1)
    assert learning_rate_at(500, settings) == pytest.approx(0.1)


def test_only_matrices_decay_and_frozen_weights_stay_out():
    model = small_model()
    model[0].weight.requires_grad_(False)
    decayed, plain = build_optimizer(model, SETTINGS).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(1, 8)]
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim == 1 for p in plain["params"])


def test_training_lowers_the_loss_and_leaves_no_trace():
    model = small_model().eval()
    state = torch.random.get_rng_state()
    settings = LoopSettings(steps=200, learning_rate=0.05)
    losses = run_loop(model, partial(fit_the_sum, model), settings).losses
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_same_seed_same_weights():
    models = [small_model(), small_model(), small_model()]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        run_loop(
            model, partial(fit_the_sum, model), LoopSettings(steps=5, learning_rate=0.1, seed=seed)
        )
    assert equal(weights(models[0]), weights(models[1]))
    assert not equal(weights(models[0]), weights(models[2]))


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path):
    whole, broken, resumed = small_model(), small_model(), small_model()
    expected = run_loop(whole, partial(fit_the_sum, whole), SETTINGS)
    state = tmp_path / "deep" / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run_loop(broken, partial(fit_the_sum, broken, stop_at=13), SETTINGS, state_path=state)
    saved: list[int] = []
    result = run_loop(
        resumed,
        partial(fit_the_sum, resumed),
        SETTINGS,
        state_path=state,
        on_checkpoint=lambda done, _: saved.append(done),
    )
    assert result.resumed_from == 10
    assert result.losses == expected.losses
    assert equal(weights(whole), weights(resumed))
    assert result.schedules == [(0, 20)]
    assert saved == [15, 20]
    assert [path.name for path in state.parent.iterdir()] == ["state.safetensors"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    state = tmp_path / "state.safetensors"
    model = small_model()
    run_loop(model, partial(fit_the_sum, model), SETTINGS, state_path=state)
    again = small_model()
    result = run_loop(again, partial(fit_the_sum, again), SETTINGS, state_path=state)
    assert result.resumed_from == len(result.losses) == 20
    assert equal(weights(model), weights(again))


def test_a_run_made_longer_records_both_schedules(tmp_path: Path):
    state = tmp_path / "state.safetensors"
    model = small_model()
    run_loop(model, partial(fit_the_sum, model), SETTINGS, state_path=state)
    longer = replace(SETTINGS, steps=22)
    result = run_loop(model, partial(fit_the_sum, model), longer, state_path=state)
    assert result.schedules == [(0, 20), (20, 22)]
    assert len(result.losses) == 22


def test_state_of_another_model_is_refused(tmp_path: Path):
    state = tmp_path / "state.safetensors"
    model, other = small_model(), nn.Linear(4, 1)
    run_loop(model, partial(fit_the_sum, model), SETTINGS, state_path=state)
    with pytest.raises(InvalidInputError, match="another model"):
        run_loop(other, partial(fit_the_sum, other), SETTINGS, state_path=state)


def test_a_loss_that_is_not_finite_stops_the_run():
    model = small_model()
    with pytest.raises(InvalidInputError, match="nan at step 1"):
        run_loop(model, lambda *_: model[0].weight.sum() * math.nan, SETTINGS)


def test_a_run_that_diverged_leaves_neither_state_nor_bad_weights(tmp_path: Path):
    model, state = small_model(), tmp_path / "state.safetensors"

    def diverge(step: int, generator: torch.Generator) -> Tensor:
        loss = fit_the_sum(model, step, generator)
        return loss * math.inf if step == 12 else loss

    with pytest.raises(InvalidInputError, match="inf at step 13"):
        run_loop(model, diverge, SETTINGS, state_path=state)
    assert not state.exists()
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_parts_of_a_batch_are_one_step():
    whole, cut = small_model(), small_model()

    def halves(step: int, generator: torch.Generator) -> Iterator[Tensor]:
        inputs = torch.randn(16, 4, generator=generator)
        for part in inputs.chunk(2):
            yield 0.5 * (cut(part).squeeze(1) - part.sum(dim=1)).square().mean()

    expected = run_loop(whole, partial(fit_the_sum, whole), SETTINGS)
    result = run_loop(cut, halves, SETTINGS)
    assert result.losses == pytest.approx(expected.losses, abs=1e-6)
    for first, second in zip(weights(whole), weights(cut), strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_a_state_is_saved_when_so_much_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = iter(range(10_000))  # every look at it is a second later
    monkeypatch.setattr("mobilekit.train.loop.time.monotonic", lambda: float(next(clock)))
    model, saved = small_model(), []
    settings = replace(SETTINGS, checkpoint_every=1000, checkpoint_seconds=30.0)
    run_loop(
        model,
        partial(fit_the_sum, model),
        settings,
        state_path=tmp_path / "state.safetensors",
        on_checkpoint=lambda done, _: saved.append(done),
    )
    assert len(saved) > 2
    assert saved[-1] == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_ends_the_step_and_saves_it(number: signal.Signals, tmp_path: Path):
    state = tmp_path / "state.safetensors"
    whole, stopped, resumed = small_model(), small_model(), small_model()
    expected = run_loop(whole, partial(fit_the_sum, whole), SETTINGS)

    def stop(step: int, generator: torch.Generator) -> Tensor:
        if step == 12:
            signal.raise_signal(number)
        return fit_the_sum(stopped, step, generator)

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_loop(stopped, stop, SETTINGS, state_path=state)
    finally:
        signal.signal(number, before)
    result = run_loop(resumed, partial(fit_the_sum, resumed), SETTINGS, state_path=state)
    assert result.resumed_from == 13
    assert result.losses == expected.losses
    assert equal(weights(whole), weights(resumed))


def test_progress_says_step_loss_speed_and_what_is_left(monkeypatch: pytest.MonkeyPatch):
    notes: list[str] = []

    class Bar:
        def advance(self, amount: float = 1, note: str = "") -> None:
            notes.append(note)

    monkeypatch.setattr("mobilekit.core.console.progress", lambda *_, **__: nullcontext(Bar()))
    model = small_model()
    settings = replace(SETTINGS, tokens_a_step=128)
    run_loop(model, partial(fit_the_sum, model), settings)
    assert len(notes) == 21
    assert re.fullmatch(r"step 20  loss \d+\.\d{3}  [\d,]+ tokens/s  0:00:00 left", notes[-1])


def test_next_token_loss_looks_one_ahead():
    ids = torch.tensor([[0, 2, 1]])
    logits = torch.full((1, 3, 3), -50.0)
    logits[0, 0, 2] = logits[0, 1, 1] = 50.0
    assert float(next_token_loss(logits, ids)) == pytest.approx(0.0, abs=1e-6)
    assert float(next_token_loss(torch.zeros(1, 3, 3), ids)) == pytest.approx(math.log(3))


def test_distillation_loss_against_the_definition():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    p = (teacher / 2).softmax(-1)
    expected = 4 * (p * (p.log() - (student / 2).log_softmax(-1))).sum(-1).mean()
    assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(float(expected), 1e-5)
    assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_balance_loss_is_lowest_when_experts_share_the_work():
    even = torch.eye(4).repeat(3, 1) * 9
    uneven = torch.tensor([[9.0, 0, 0, 0]]).repeat(12, 1)
    assert float(balance_loss([even], 1)) == pytest.approx(1.0, abs=1e-4)
    assert float(balance_loss([uneven], 1)) > 3.9
    assert expert_load(even, 1).tolist() == [0.25] * 4


def test_balance_loss_does_not_let_layers_make_up_for_each_other():
    first = torch.tensor([[9.0, 0.0]]).repeat(4, 1)
    pooled_even = [first, first.flip(1)]
    assert float(balance_loss(pooled_even, 1)) > 1.9


def test_balance_loss_takes_layers_with_different_numbers_of_experts():
    layers = [torch.zeros(6, 4), torch.zeros(6, 2), torch.zeros(6, 1)]
    assert math.isfinite(float(balance_loss(layers, 2)))


def test_a_damaged_state_is_named(tmp_path: Path):
    state, model = tmp_path / "state.safetensors", small_model()
    run_loop(model, partial(fit_the_sum, model), SETTINGS, state_path=state)
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.raises(InvalidInputError, match="is damaged"):
        run_loop(model, partial(fit_the_sum, model), SETTINGS, state_path=state)


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path: Path):
    folder, model = tmp_path / "full", small_model()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))  # the next longer write fails
    try:
        with pytest.raises(OutputError, match="cannot write"):
            run_loop(model, partial(fit_the_sum, model), SETTINGS, state_path=folder / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []
