from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from mobilekit.core.errors import UsageError
from mobilekit.profile import measure as measuring
from mobilekit.profile import workloads
from mobilekit.profile.latency import latency_metrics
from mobilekit.profile.measure import Plan, measure
from mobilekit.runtime.base import Logits, Tokens, check_span

STEP_SECONDS = 0.02


@dataclass
class Sleeper:
    """A model of known slowness that writes down what it is asked."""

    seconds: float = 0.0
    busy: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple[int, int]] = field(default_factory=list)
    seen: list[tuple[int, ...]] = field(default_factory=list)
    resets: int = 0
    name: str = "sleeper"
    version: str = "1"
    vocab_size: int = 32
    context_length: int = 64

    def reset(self) -> None:
        self.resets += 1

    def forward(self, tokens: Tokens, position: int) -> Logits:
        check_span(len(tokens), position, self.context_length)
        self.calls.append((len(tokens), position))
        self.seen.append(tuple(tokens.tolist()))
        self.busy.set()
        time.sleep(self.seconds)
        self.busy.clear()
        return np.zeros(self.vocab_size, dtype=np.float32)


def plan(*names: str, repetitions: int = 2, warmup: int = 1, sysfs: Path = Path("/none")) -> Plan:
    return Plan(workloads.parse_all(list(names)), repetitions, warmup, sysfs)


def test_a_sleep_of_20_ms_is_never_shorter() -> None:
    (item,) = measure(lambda: Sleeper(STEP_SECONDS), plan("tg4", repetitions=3)).measured
    decode = [s for s in item.samples if s.phase == "decode"]
    assert [(s.repetition, s.token) for s in decode] == [(r, t) for r in range(3) for t in range(4)]
    metrics = latency_metrics(item.samples)
    assert metrics["tpot_ms"]["p50"] >= STEP_SECONDS * 1e3
    assert metrics["tpot_ms"]["n"] == 9
    assert 0 < metrics["decode_tokens_per_s"]["p50"] <= 1 / STEP_SECONDS


def test_samples_of_a_repetition_add_up_to_its_wall_time() -> None:
    model = Sleeper(0.002)
    prompt, new = workloads.random_tokens(workloads.parse("pp8+tg6"), model.vocab_size)
    start = time.perf_counter_ns()
    samples = measuring.time_repetition(model, prompt, new, 0)
    wall = time.perf_counter_ns() - start
    total = sum(s.ns for s in samples)
    assert 7 * 2_000_000 <= total <= wall


def test_the_model_is_asked_exactly_what_the_workloads_say() -> None:
    model = Sleeper()
    result = measure(lambda: model, plan("pp8", "tg3", "pp5+tg2", repetitions=2, warmup=1))
    cold = [(1, 0)]
    pp, tg = [(8, 0)], [(1, 0), (1, 1), (1, 2)]
    both = [(5, 0), (1, 5), (1, 6)]
    assert model.calls == cold + 3 * pp + 3 * tg + 3 * both
    assert model.resets == 9
    pieces = [model.seen[i] for i in (7 + 6, 8 + 6, 9 + 6)]
    prompt, new = workloads.random_tokens(workloads.parse("pp5+tg2"), model.vocab_size)
    assert sum(pieces, ()) == (*prompt.tolist(), *new.tolist())
    assert [m.workload for m in result.measured] == ["pp8", "tg3", "pp5+tg2"]
    assert [(s.phase, s.tokens) for s in result.measured[2].samples] == 2 * [
        ("prefill", 5), ("decode", 1), ("decode", 1)
    ]  # fmt: skip


def test_cold_start_is_loading_and_first_inference_apart() -> None:
    def slow_open() -> Sleeper:
        time.sleep(0.03)
        return Sleeper(0.01)

    load, first = measure(slow_open, plan("tg2")).cold
    assert (load.phase, first.phase) == ("load", "first")
    assert load.ns >= 30_000_000
    assert first.ns >= 10_000_000


def test_a_workload_beyond_the_context_is_refused_before_any_is_timed() -> None:
    model = Sleeper(context_length=16)
    with pytest.raises(UsageError, match="'pp10\\+tg7' needs 17 positions, but the context has 16"):
        measure(lambda: model, plan("pp8", "pp10+tg7"))
    assert model.calls == [(1, 0)]


def test_every_repetition_is_reported() -> None:
    ticks: list[int] = []
    made = Plan(workloads.parse_all(["pp2", "tg2"]), 3, 2, on_repetition=lambda: ticks.append(1))
    measure(Sleeper, made)
    assert len(ticks) == 2 * (3 + 2)


def test_without_counters_energy_is_unavailable_with_the_reason() -> None:
    result = measure(Sleeper, plan("tg2"))
    (item,) = result.measured
    assert item.energy.status == "unavailable"
    assert item.energy.reason == "no powercap interface"
    assert result.idle_drift_watts is None
    assert item.thermal["before"]["zones_reason"] == "no readable thermal zone"
    assert item.thermal["hottest_c_by_repetition"] is None


@pytest.fixture
def powered(tmp_path: Path) -> Iterator[tuple[Path, Sleeper]]:
    """A live counter of a machine that takes 2 W idle and 12 W while the model runs."""
    model = Sleeper(0.05)
    path = tmp_path / "class/powercap/intel-rapl:0"
    path.mkdir(parents=True)
    (path / "name").write_text("package-0")
    (path / "max_energy_range_uj").write_text("5000000")
    (path / "energy_uj").write_text("0")
    stop = threading.Event()

    def run() -> None:
        total, last = 0.0, time.monotonic()
        while not stop.is_set():
            time.sleep(0.002)
            now = time.monotonic()
            total += (now - last) * (12.0 if model.busy.is_set() else 2.0)
            last = now
            (path / "next").write_text(str(int(total * 1e6) % 5_000_000))
            os.replace(path / "next", path / "energy_uj")

    thread = threading.Thread(target=run)
    thread.start()
    yield tmp_path, model
    stop.set()
    thread.join()


def test_energy_is_measured_in_a_run_of_its_own(
    powered: tuple[Path, Sleeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "IDLE_SECONDS", 1.2)
    monkeypatch.setattr(measuring, "ENERGY_SECONDS", 1.2)
    sysfs, model = powered
    result = measure(lambda: model, plan("pp4+tg2", repetitions=2, warmup=0, sysfs=sysfs))
    (item,) = result.measured
    record = item.energy
    timed = 1 + 2 * 3  # cold start, two repetitions
    assert len(item.samples) == 2 * 3
    assert len(model.calls) >= timed + 8 * 3  # 1.2 s in repetitions of 0.15 s came after it
    assert record.status == "measured"
    assert record.source == "rapl:package-0"
    assert record.joules is not None
    assert record.baseline_watts is not None
    assert record.interval_s is not None
    assert record.interval_s >= 1.2
    repetitions = (len(model.calls) - timed) / 3
    assert record.joules_per_token == pytest.approx(record.joules / repetitions / 6)
    assert 0 < record.joules <= 12.5 * record.interval_s
    assert result.idle_drift_watts is not None
