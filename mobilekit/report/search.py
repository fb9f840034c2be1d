"""How a search came to its levels: fitness over generations, and what that took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobilekit.schema.plan import Plan

from .lines import Line, lines, span_of
from .numbers import count, seconds, significant
from .units import METHOD, amount, entries, whole


@dataclass(frozen=True)
class Generation:
    """One generation: the survivor's and its parent's fitness on the same data; lower is better."""

    number: int
    fitness: float | None
    parent: float | None
    train_tokens: int | None
    fitness_tokens: int | None
    seconds: float | None


@dataclass(frozen=True)
class SearchView:
    """What the page shows of a search."""

    chart: str
    facts: tuple[tuple[str, str], ...]
    note: str


def generations(plan: Plan) -> list[Generation]:
    """Return the generations that a plan records, in order; what is malformed is absent."""
    search = plan.scores.get("search")
    records = search.get("generations") if isinstance(search, dict) else None
    found = [_generation(entry, place) for place, entry in enumerate(entries(records))]
    return sorted(found, key=lambda g: g.number)


def _generation(entry: dict[str, Any], place: int) -> Generation:
    number, tokens = whole(entry.get("generation")), entry.get("tokens")
    tokens = tokens if isinstance(tokens, dict) else {}
    took = amount(entry.get("seconds"))
    return Generation(
        number=place if number is None else number,
        fitness=amount(entry.get("fitness")),
        parent=amount(entry.get("parent")),
        train_tokens=whole(tokens.get("train")),
        fitness_tokens=whole(tokens.get("fitness")),
        seconds=took if took is not None and took >= 0 else None,
    )


def search_view(plan: Plan) -> SearchView | None:
    """Return the chart and the figures of a plan's search; None where none is recorded."""
    found = generations(plan)
    if not found:
        return None
    best = Line("best of the generation", [(g.number, g.fitness) for g in found], "after")
    parent = Line("its parent, same data", [(g.number, g.parent) for g in found], "before")
    axis = span_of([g.number for g in found], "generation")
    label = f"Fitness of the best candidate and of its parent over {_so_many(found)}"
    return SearchView(
        chart=lines(label, [parent, best], axis, y_name="fitness, less is better"),
        facts=tuple(_facts(found)),
        note=_note(plan, found),
    )


def _so_many(found: Sequence[Generation]) -> str:
    return "1 generation" if len(found) == 1 else f"{len(found)} generations"


def _facts(found: Sequence[Generation]) -> list[tuple[str, str]]:
    facts = [("search", _so_many(found))]
    both = [(g.fitness, g.parent) for g in found if g.fitness is not None and g.parent is not None]
    if both:
        better = sum(fitness < parent for fitness, parent in both)
        facts.append(("a child beat its parent", f"in {better} of {len(both)}"))
    ends = (found[0].parent, found[-1].fitness)
    if None not in ends:
        first, last = (significant(end) for end in ends)
        words = f"parent at the start {first}, best at the end {last}"
        facts.append(("fitness", f"{words} (other data)" if len(found) > 1 else words))
    for name, values in (
        ("tokens of fine-tuning", [g.train_tokens for g in found]),
        ("tokens of comparing", [g.fitness_tokens for g in found]),
    ):
        facts.append((name, _total(values, count)))
    facts.append(("search time", _total([g.seconds for g in found], seconds)))
    return facts


def _total(values: Sequence[float | None], show: Any) -> str:
    """Return a sum, and of how many generations it is where some do not tell."""
    known = [value for value in values if value is not None]
    if not known:
        return "not recorded"
    words = str(show(sum(known)))
    return words if len(known) == len(values) else f"{words} in {len(known)} of {len(values)}"


def _note(plan: Plan, found: Sequence[Generation]) -> str:
    """Return what the curve is not: held out, or one measurement repeated."""
    divergence = ", the mean KL divergence from the model that went in," * (plan.method == METHOD)
    note = (
        f"Fitness{divergence} is measured on calibration data, not on held-out text. "
        "Each generation draws its "
        "data anew, so its values are noisy: best and parent of one generation saw the same "
        "tokens, values of different generations did not."
    )
    if any(g.train_tokens for g in found):
        note += " Candidates were compared after a short fine-tune, whose weights are discarded."
    if any(g.fitness is None for g in found):
        note += " A gap is a generation whose value is no finite number."
    return note
