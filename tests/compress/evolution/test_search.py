"""The search: it finds optima that are known, never gets worse, and goes on where it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mobilekit.compress.evolution import (
    EvolutionSettings,
    GenerationRecord,
    Group,
    State,
    evolve,
    fanned_out,
    sums,
    uniform,
)
from mobilekit.compress.evolution.space import check_state
from mobilekit.core.errors import CheckFailedError, InvalidInputError, OutputError, UsageError

from .toy import (
    COSTS,
    GROUPS,
    SETTINGS,
    START,
    convex_costs,
    every_state,
    noise,
    noisy,
    search,
    told,
    total,
)

SHORT = SETTINGS.model_copy(update={"generations": 5})


@pytest.mark.parametrize("seed", range(20))
def test_the_optimum_of_brute_force_is_found(seed: int) -> None:
    costs = convex_costs(seed)
    best = min(total(costs, state) for state in every_state(GROUPS, sums(START)))
    settings = EvolutionSettings(offspring=8, generations=25, survivors=(4, 1), seed=seed)
    evaluate = fanned_out(lambda candidate, generation, stage: total(costs, candidate))
    found = evolve(START, GROUPS, evaluate, settings)
    assert math.isclose(total(costs, found.state), best, rel_tol=1e-12)


def test_an_exact_fitness_never_gets_worse_and_every_parent_is_valid() -> None:
    evaluate = fanned_out(lambda candidate, generation, stage: noise(candidate, 0, 0))
    settings = EvolutionSettings(offspring=8, generations=30, survivors=(4, 2, 1), seed=5)
    history = evolve(START, GROUPS, evaluate, settings).history
    parent, fitness = START, noise(START, 0, 0)
    for record in history:
        check_state(record.winner, GROUPS)
        assert sums(record.winner) == sums(START)
        assert record.parent_fitness == fitness
        assert record.fitness == noise(record.winner, 0, 0) <= fitness
        assert record.parent_survived == (record.winner == parent)
        assert record.evaluations == (8, 4, 3)
        parent, fitness = record.winner, record.fitness
    assert history[-1].fitness < history[0].fitness
    assert any(record.parent_survived for record in history)
    assert [record.generation for record in history] == list(range(30))


def test_more_data_in_later_stages_makes_up_for_noise_in_the_first() -> None:
    best = min(total(COSTS, state) for state in every_state(GROUPS, sums(START)))
    settings = EvolutionSettings(offspring=8, generations=60, survivors=(4, 2, 1), seed=0)
    found = evolve(START, GROUPS, fanned_out(noisy), settings)
    assert total(COSTS, found.state) < best + 0.25 * (total(COSTS, START) - best)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_that_diverges_never_wins(bad: float) -> None:
    def evaluate(candidate: State, generation: int, stage: int) -> float:
        diverges = candidate != START and noise(candidate, 0, 0) < 0.5
        return bad if diverges else total(COSTS, candidate)

    for record in evolve(START, GROUPS, fanned_out(evaluate), SETTINGS).history:
        assert record.winner == START or noise(record.winner, 0, 0) >= 0.5


def test_a_search_in_which_everything_diverges_says_so() -> None:
    evaluate = fanned_out(lambda candidate, generation, stage: math.nan)
    with pytest.raises(CheckFailedError, match="no candidate of generation 0"):
        evolve(START, GROUPS, evaluate, SETTINGS)


def test_the_same_seed_gives_the_same_search_and_another_seed_another() -> None:
    other = evolve(START, GROUPS, fanned_out(noisy), SETTINGS.model_copy(update={"seed": 4}))
    assert told(search(None)) == told(search(None))
    assert told(search(None)) != told(other)


def test_an_exact_budget_is_kept_by_every_parent() -> None:
    sizes = (3, 5, 8)

    def within(state: State) -> bool:
        used = sum(size * level for size, level in zip(sizes, state[1], strict=True))
        return abs(used - 32) <= 3

    found = evolve(START, GROUPS, fanned_out(noisy), SHORT, accept=within)
    assert all(within(record.winner) for record in found.history)


def test_a_start_outside_the_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="begins with is not accepted"):
        evolve(START, GROUPS, fanned_out(noisy), SETTINGS, accept=lambda state: state != START)


def test_more_offspring_than_neighbours_are_refused_before_anything_is_evaluated() -> None:
    groups = (Group("mlp", (1, 1, 1)),)

    def evaluate(candidate: State, generation: int, stage: int) -> float:
        raise AssertionError("nothing may be evaluated")

    with pytest.raises(UsageError, match=r"16 offspring .* only 2 neighbours"):
        evolve(((1, 0, 0),), groups, fanned_out(evaluate), EvolutionSettings())


def test_a_later_parent_with_fewer_neighbours_makes_do_with_them() -> None:
    groups = (Group("mlp", (4, 4, 1)),)
    settings = EvolutionSettings(offspring=8, generations=30, survivors=(4, 1), seed=0)
    evaluate = fanned_out(lambda candidate, generation, stage: -float(candidate[0][0]))
    found = evolve(((1, 2, 1),), groups, evaluate, settings)
    every = len(list(every_state(groups, (4,))))
    assert every == 9
    assert found.state == ((4, 0, 0),)
    assert found.history[0].evaluations == (8, 5)
    assert found.history[-1].evaluations[0] < 8


@pytest.mark.parametrize(
    ("groups", "start", "message"),
    [
        ((Group("mlp", (4,)),), ((2,),), "has 1 member"),
        (GROUPS, uniform(GROUPS, 0), "at its lowest level"),
        (GROUPS, uniform(GROUPS, 4), "at its highest level"),
        (GROUPS, ((2, 2, 2), (2, 2, 5)), "level 5 of member 2 of group 'mlp'"),
        (GROUPS, ((2, 2, 2), (2, 2, 1.5)), r"level 1\.5 of member 2 of group 'mlp'"),
    ],
)
def test_a_bad_start_is_refused(groups: Any, start: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evolve(start, groups, fanned_out(noisy), SETTINGS)


class _Stopped(Exception):
    pass


def _stopped_after(path: Path, generation: int) -> None:
    def stop(record: GenerationRecord) -> None:
        if record.generation == generation:
            raise _Stopped

    with pytest.raises(_Stopped):
        evolve(
            START,
            GROUPS,
            fanned_out(noisy),
            SETTINGS,
            state_path=path,
            identity="toy",
            on_generation=stop,
        )


@pytest.mark.parametrize("generation", range(SETTINGS.generations))
def test_a_search_goes_on_from_any_generation_to_the_same_result(
    generation: int, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "search.json"
    _stopped_after(path, generation)
    assert json.loads(path.read_text())["generation"] == generation + 1
    assert told(search(path)) == told(search(None))


def test_a_finished_search_is_read_back_made_longer_and_cut_short(tmp_path: Path) -> None:
    path, evaluate = tmp_path / "search.json", fanned_out(noisy)

    def run(settings: EvolutionSettings, where: Path | None) -> list[object]:
        return told(evolve(START, GROUPS, evaluate, settings, state_path=where))

    run(SHORT, path)
    stored = path.read_bytes()
    assert run(SHORT, path) == run(SHORT, None)
    assert path.read_bytes() == stored
    assert run(SETTINGS, path) == run(SETTINGS, None)
    assert run(SHORT, path) == run(SHORT, None)


def test_the_state_of_another_search_is_refused(tmp_path: Path) -> None:
    path, evaluate = tmp_path / "search.json", fanned_out(noisy)
    evolve(START, GROUPS, evaluate, SHORT, state_path=path, identity={"data": "a"})
    stored = path.read_bytes()
    start, wider = ((2, 2, 2), (1, 2, 3)), (GROUPS[0], Group("mlp", (4, 4, 5)))
    others = [
        (START, GROUPS, SHORT, {"data": "b"}),
        (start, GROUPS, SHORT, {"data": "a"}),
        (START, wider, SHORT, {"data": "a"}),
        (START, GROUPS, SHORT.model_copy(update={"seed": 9}), {"data": "a"}),
    ]
    for begin, groups, settings, identity in others:
        with pytest.raises(UsageError, match="is the state of another search"):
            evolve(begin, groups, evaluate, settings, state_path=path, identity=identity)
    assert path.read_bytes() == stored


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record.update(generation=9), "does not lead to generation 9"),
        (lambda record: record.update(parent=[[2, 2, 2], [0, 2, 4]]), "does not lead to"),
        (lambda record: record["history"].pop(0), "does not lead to"),
        (lambda record: record.pop("history"), "'history' is missing"),
        (lambda record: record["history"][1].update(winner=[[2, 2, 2], [2, 2, 9]]), "level 9"),
        (lambda record: record["history"][1].update(fitness="low"), "'fitness' is 'low'"),
    ],
)
def test_a_damaged_state_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    _stopped_after(path, 3)
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(InvalidInputError, match=message):
        search(path)


def test_half_a_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_text('{"schema": "mobilekit.evolution/1"')
    with pytest.raises(InvalidInputError, match="is not valid JSON"):
        search(path)
    with pytest.raises(InvalidInputError, match="is a directory"):
        search(tmp_path)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_evaluated(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")

    def evaluate(candidate: State, generation: int, stage: int) -> float:
        raise AssertionError("nothing may be evaluated")

    path = tmp_path / "file" / "search.json"
    with pytest.raises(OutputError, match="file is a file"):
        evolve(START, GROUPS, fanned_out(evaluate), SETTINGS, state_path=path)
