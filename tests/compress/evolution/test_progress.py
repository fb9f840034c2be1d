"""What a running search shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mobilekit.compress.evolution import EvolutionSettings, evolve, fanned_out
from mobilekit.compress.evolution.progress import SearchProgress, duration

from .toy import GROUPS, SETTINGS, START, noisy, search


class Bar:
    """A bar that remembers what it was told."""

    def __init__(self) -> None:
        self.done, self.notes = 0.0, list[str]()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.notes.append(note)


def test_every_generation_tells_its_number_the_best_fitness_and_the_time_left() -> None:
    bar = Bar()
    progress = SearchProgress(bar, SETTINGS, 0)
    evaluate = progress.counting(fanned_out(noisy))
    result = evolve(START, GROUPS, evaluate, SETTINGS, on_generation=progress.chosen)
    last = SETTINGS.generations
    assert bar.done == last * sum(SETTINGS.evaluations)
    for record in result.history:
        start = f"generation {record.generation + 1}/{last}  best {record.fitness:.4g}  "
        assert any(re.fullmatch(re.escape(start) + r"\d+ s left", note) for note in bar.notes)
    assert bar.notes[-1].endswith("  0 s left")


def test_each_candidate_moves_the_bar_and_a_batch_does_so_at_once() -> None:
    for evaluate, notes in [(fanned_out(noisy), 4), (lambda pool, g, s: [0.0] * len(pool), 2)]:
        bar = Bar()
        SearchProgress(bar, SETTINGS, 0).counting(evaluate)([START] * 3, 0, 0)
        assert bar.done == 3
        assert len(bar.notes) == notes


def test_a_resumed_search_starts_where_it_was() -> None:
    bar = Bar()
    SearchProgress(bar, EvolutionSettings(generations=10), 4)
    assert bar.done == 4 * 31
    assert bar.notes == ["resumed"]


def test_nothing_is_printed_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(tmp_path / "search.json")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "  search\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3540, "59 min"), (3600, "1 h 00 min")]
    + [(7500, "2 h 05 min"), (3599, "1 h 00 min")],
)
def test_times_are_for_people(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
