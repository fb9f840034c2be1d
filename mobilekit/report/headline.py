"""The top of the page: one sentence, and a before → after tile for each main figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .accuracy import CHANCE, accuracy_of, compare
from .busy import worst
from .evidence import Evidence
from .numbers import Change, change, count, percent, rate, significant, size
from .paired import perplexity_interval, same_text
from .quality import perplexity_of
from .subjects import Subject, added_bytes, baseline, overlap, shipped, spread


@dataclass(frozen=True)
class Tile:
    """One figure before and after; None where it was not measured.

    ``caveat`` is what must be said wherever the change is.
    """

    label: str
    before: str | None
    after: str | None
    change: Change | None
    note: str = ""
    values: tuple[float | None, float | None] = (None, None)
    caveat: str = ""


@dataclass(frozen=True)
class Headline:
    """What the reader sees first."""

    clauses: tuple[str, ...]
    model: str
    explanation: str
    tiles: Mapping[str, Tile]
    artifact: str | None

    @property
    def sentence(self) -> str:
        """Return the clauses as one sentence."""
        return ", ".join(self.clauses) + "."


def headline(evidence: Evidence, found: Sequence[Subject]) -> Headline:
    """Return the headline; every part that was not measured says so."""
    old, new = baseline(found), shipped(found)
    tiles = {
        "parameters": _parameter_tile(evidence, "Parameters", "parameters"),
        "active": _active_tile(evidence),
        **figures(old, new),
        "parity": _parity_tile(evidence),
    }
    return Headline(
        clauses=_clauses(old, new, tiles),
        model=_model(evidence),
        explanation=_explain(old, new),
        tiles=tiles,
        artifact=new.id if new else None,
    )


def figures(old: Subject | None, new: Subject | None) -> dict[str, Tile]:
    """Return the figures that any two subjects are compared by."""
    return {
        "size": _size_tile(old, new),
        "decode": _decode_tile(old, new),
        "memory": _memory_tile(old, new),
        "perplexity": _perplexity_tile(old, new),
        "accuracy": _accuracy_tile(old, new),
    }


def _model(evidence: Evidence) -> str:
    manifest, models = evidence.manifest, evidence.run.models
    if manifest is not None and isinstance(manifest.model.get("name"), str):
        return str(manifest.model["name"])
    return models.before.class_ if models is not None else "Model not recorded"


def _tile(
    label: str,
    old: float | None,
    new: float | None,
    show: Callable[[float], str],
    *,
    better: Literal["lower", "higher"],
    note: str = "",
) -> Tile:
    before, after = (None if value is None else show(value) for value in (old, new))
    moved = change(old, new, better=better)
    return Tile(label, before, after, moved, note, (old, new))


def _parameter_tile(evidence: Evidence, label: str, name: str) -> Tile:
    models = evidence.run.models
    if models is None:
        return Tile(label, None, None, None)
    old, new = (getattr(m, name) for m in (models.before, models.after or models.before))
    return _tile(label, old, new, count, better="lower")


def _active_tile(evidence: Evidence) -> Tile:
    """Return the parameters that one token uses; a change under 1 % is nobody's gain."""
    tile = _parameter_tile(evidence, "Active per token", "active_parameters")
    old, new = tile.values
    if tile.change is None or not old or new is None or abs(new / old - 1) >= 0.01:
        return tile
    note = "a token costs about as much as before"
    return replace(tile, change=Change(tile.change.text, "same"), note=note)


def _size_tile(old: Subject | None, new: Subject | None) -> Tile:
    before, after = (s.bytes if s else None for s in (old, new))
    return _tile("File size", before, after, size, better="lower")


def _decode_tile(old: Subject | None, new: Subject | None) -> Tile:
    before, after = (s.decode_rate() if s else None for s in (old, new))
    tile = _tile("Decode speed", before, after, rate, better="higher")
    if old is None or new is None or tile.change is None:
        return tile
    notes = [f"{old.runtime} before, {new.runtime} after"] if old.runtime != new.runtime else []
    if new.throttled:
        notes.append("slowed down during its run")
    moved = tile.change
    if overlap(spread(old.decode_ms()), spread(new.decode_ms())):
        moved = Change(moved.text, "unclear")
        notes.append("within the spread of the samples")
    busy = worst(old, new)
    caveat = f"while {busy.words}" if busy else ""
    return replace(tile, change=moved, note="; ".join(notes), caveat=caveat)


def _memory_tile(old: Subject | None, new: Subject | None) -> Tile:
    one, two = (s.memory() if s else None for s in (old, new))
    label = "Memory added"
    before, after = (added_bytes(m) for m in (one, two))
    tile = _tile(
        label,
        before,
        after,
        size,
        better="lower",
        note=f"{two.counter}, peak less baseline" if two else "",
    )
    if one is not None and two is not None and one.counter != two.counter:
        note = f"{one.counter} before, {two.counter} after: not comparable"
        return replace(tile, change=None, note=note)
    return tile


def _perplexity_tile(old: Subject | None, new: Subject | None) -> Tile:
    before, after = (perplexity_of(s) if s else None for s in (old, new))
    tile = _tile("Held-out perplexity", before, after, significant, better="lower")
    if tile.change is not None and not same_text(old, new):
        note = "another text or window before than after: not comparable"
        return replace(tile, change=None, note=note)
    ends = perplexity_interval(old, new)
    if tile.change is None or ends is None:
        return tile
    low, high = (f"{'+' if end > 0 else '−'}{abs(end) * 100:.1f}" for end in ends)
    note = f"95 % interval of the change, paired by window: {low} to {high} %"
    if ends[0] < 0 < ends[1]:
        note += "; within noise"
        return replace(tile, change=Change(tile.change.text, "unclear"), note=note)
    return replace(tile, note=note)


def _accuracy_tile(old: Subject | None, new: Subject | None) -> Tile:
    one, two = (accuracy_of(s) if s else None for s in (old, new))
    known = two or one
    suite = known.suite if known else ""
    values = one.value if one else None, two.value if two else None
    before, after = (None if v is None else percent(v) for v in values)
    moved = compare(one, two)
    note = f"{suite}, 95 % interval {two.interval_text()}" if two else suite
    if two is not None and two.low is not None and two.low <= CHANCE:
        note += f"; not above chance ({CHANCE:.0%})"
    return Tile("Accuracy", before, after, moved, note, values)


def _parity_tile(evidence: Evidence) -> Tile:
    artifacts = evidence.manifest.artifacts if evidence.manifest else ()
    if not artifacts:
        return Tile("Parity", None, None, None, "no bundle yet")
    passed = sum(a.parity.passed is True for a in artifacts)
    failed = sum(a.parity.passed is False for a in artifacts)
    skipped = len(artifacts) - passed - failed
    bad = Change(f"{failed} outside tolerance", "worse") if failed else None
    note = f"{skipped} not executed" if skipped else ""
    if passed == len(artifacts):
        note = "each inside its own tolerance"
    greedy = [a.parity.greedy for a in artifacts if a.parity.greedy is not None]
    if greedy:
        equal, asked = sum(g.equal for g in greedy), sum(g.prompts for g in greedy)
        words = f"{equal} of {asked} greedy continuations equal fp32 eager\u2019s"
        note = f"{note}; {words}" if note else words
    text = f"{passed} of {len(artifacts)}"
    return Tile("Parity passed", None, text, bad, note, (None, passed))


def _clauses(
    old: Subject | None, new: Subject | None, tiles: Mapping[str, Tile]
) -> tuple[str, ...]:
    """Return the result in words, only from figures that were measured on both sides."""
    if old is None or new is None:
        return ("No artifact has passed its parity check yet",)
    parts = []
    if old.bytes and new.bytes:
        parts.append(_factor(old.bytes / new.bytes, "smaller", "larger"))
    before, after = tiles["decode"].values
    if before and after:
        parts.append(_decode_clause(after / before, tiles["decode"], old, new))
    moved = tiles["perplexity"].change
    if moved is not None:
        words = "unchanged" if moved.verdict == "same" else moved.text
        words += " (within noise)" if moved.verdict == "unclear" else ""
        parts.append(f"perplexity {words}")
    if not parts:
        return ("Nothing was measured on both sides yet",)
    return (parts[0][0].upper() + parts[0][1:], *parts[1:])


def _decode_clause(factor: float, tile: Tile, old: Subject, new: Subject) -> str:
    """Return how decoding changed, naming the runtime before where it is another one."""
    if tile.change is not None and tile.change.verdict == "unclear":
        return "decode speed unchanged within its spread"
    if tile.caveat:  # no factor: what it would be on an idle machine is not known
        return f"decoding {tile.before} before and {tile.after} after {tile.caveat}"
    words = _factor(factor, "faster to decode", "slower to decode")
    return words if old.runtime == new.runtime else f"{words} than {ran_by(old)}"


def _factor(value: float, up: str, down: str) -> str:
    if abs(value - 1) < 0.02:
        return f"not measurably {up}"
    word = up if value > 1 else down
    return f"{significant(max(value, 1 / value), 2)}× {word}"


def ran_by(subject: Subject) -> str:
    """Return the runtime in words; torch runs a model operator by operator, that is, eager."""
    return "torch eager" if subject.runtime == "torch" else subject.runtime


def _explain(old: Subject | None, new: Subject | None) -> str:
    if new is None:
        return ""
    if new.artifact is None:
        return "After means the compressed checkpoint: no exported artifact has passed parity."
    text = "Before means the original checkpoint"
    if old is not None and old.runtime:
        form = f" in {old.precision}" if old.precision else ""
        text += f"{form}, run by {ran_by(old)}"
    where = f", run by {new.runtime}" if new.runtime else ""
    return (
        f"{text}. After means {new.id}{where}: the smallest artifact that passed parity among "
        "those measured most completely."
    )
