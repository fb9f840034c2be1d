"""The search: mutate the parent, select in stages, keep the winner, write it down, repeat.

The randomness of a generation depends on the seed and its number alone, so that a search that was
killed goes on from its last generation to the same result.
Source: DarwinLM, after EvoPress; here the parent joins the last stage only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import check_writable
from mobilekit.core.seeds import generator

from .mutation import offspring
from .progress import shown
from .ranks import EvaluateMany, from_first, place
from .record import GenerationRecord, SearchRecord, identity_of, load_record, save_record
from .selection import select
from .settings import EvolutionSettings
from .space import Accept, Group, State, check_state, check_switches


class EvolutionResult(NamedTuple):
    """The last parent, and how the search came to it.

    Attributes:
        state: Level of each member, group by group.
        history: One record a generation.
    """

    state: State
    history: tuple[GenerationRecord, ...]


def evolve(
    start: State,
    groups: Sequence[Group],
    evaluate: EvaluateMany,
    settings: EvolutionSettings,
    *,
    accept: Accept | None = None,
    state_path: Path | None = None,
    identity: Any = None,
    on_generation: Callable[[GenerationRecord], None] | None = None,
) -> EvolutionResult:
    """Search for the levels of least fitness by (1 + λ) evolution; group sums stay as they are.

    Under torchrun every rank calls this with the same arguments and gets the same result; only
    rank 0 prints, writes the state, and calls ``on_generation``.

    Args:
        start: The first parent: one level for each member of each group.
        groups: What is searched.
        evaluate: Gives the fitness of each candidate of a stage of a generation (both count from
            0), lower is better: ``fanned_out(f)`` for an ``f`` of one. A pure function.
        settings: How many offspring, generations and survivors; the seed.
        accept: Whether a state is allowed (an exact budget, say); it must allow ``start``.
        state_path: JSON file, written after each generation; one that is there is gone on from.
        identity: JSON value of all that ``evaluate`` and ``accept`` depend on, so that a state
            file is never taken for one of another search.
        on_generation: Called with each new record, after it was written.

    Raises:
        UsageError: If the start or a group is wrong, it has fewer neighbours than offspring are
            asked for, or the state file is of another search.
        InvalidInputError, OutputError: If the state file is damaged, or cannot be written.
        CheckFailedError: If nobody in a last stage has a finite fitness.
    """
    _check(start, groups, accept)
    own = identity_of(start, groups, settings, identity)
    history = _resumed(state_path, own, groups)[: settings.generations]
    parent = history[-1].winner if history else start
    with shown(settings, len(history)) as progress:
        search = _Search(groups, progress.counting(evaluate), settings, accept)
        for record in search.records(parent, len(history)):
            history.append(record)
            if place()[0] != 0:
                continue
            if state_path is not None:
                save_record(state_path, own, history)
            progress.chosen(record)
            if on_generation is not None:
                on_generation(record)
    return EvolutionResult(history[-1].winner, tuple(history))


@dataclass(frozen=True)
class _Search:
    groups: Sequence[Group]
    evaluate: EvaluateMany
    settings: EvolutionSettings
    accept: Accept | None

    def records(self, parent: State, first: int) -> Iterator[GenerationRecord]:
        """Yield what each generation from number ``first`` on chose."""
        for number in range(first, self.settings.generations):
            record = self._generation(parent, number)
            yield record
            parent = record.winner

    def _generation(self, parent: State, number: int) -> GenerationRecord:
        began = time.monotonic()
        stream = generator(self.settings.seed, f"evolution.generation{number}")
        wanted = self.settings.offspring
        children = offspring(parent, self.groups, wanted, stream, accept=self.accept)
        _check_count(len(children), wanted, number)
        chosen = select(parent, children, self.settings.survivors, self.evaluate, number)
        return GenerationRecord(
            generation=number,
            fitness=chosen.fitness,
            parent_fitness=chosen.parent_fitness,
            winner=chosen.winner,
            parent_survived=chosen.winner == parent,
            evaluations=chosen.evaluations,
            seconds=time.monotonic() - began,
        )


def _check(start: State, groups: Sequence[Group], accept: Accept | None) -> None:
    check_state(start, groups)
    check_switches(start, groups)
    if accept is not None and not accept(start):
        raise UsageError(
            "the state that the search begins with is not accepted",
            hint="Begin with one within the budget, or widen the tolerance.",
        )


def _resumed(path: Path | None, own: str, groups: Sequence[Group]) -> list[GenerationRecord]:
    """Return the generations that are written down, once it is sure that more can be."""
    if path is None:
        return []

    def load() -> SearchRecord | None:
        check_writable(path, path.parent)
        return load_record(path, own, groups)

    record = from_first(load)
    return list(record.history) if record is not None else []


def _check_count(found: int, wanted: int, generation: int) -> None:
    """Refuse a neighbourhood that is too small from the start, or that nothing is left of."""
    if found == wanted:
        return
    if generation == 0:
        raise UsageError(
            f"{wanted} offspring are asked for, but the start has only {found} neighbours that "
            "are accepted",
            hint=f"Ask for at most {found}, use more levels, or widen the budget's tolerance."
            if found
            else "Use more levels, or widen the budget's tolerance.",
        )
    if found == 0:
        raise UsageError(
            f"the parent of generation {generation} has no neighbour that is accepted",
            hint="Widen the budget's tolerance; the parent so far is in the state file.",
        )
    if place()[0] == 0:
        console.detail(f"generation {generation}: only {found} of {wanted} offspring exist")
