"""Whether two results on the same questions differ: the paired test that says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilekit.core.errors import InvalidInputError
from mobilekit.metrics.intervals import mcnemar_exact, wilson_interval
from mobilekit.schema.result import Result

__all__ = ["compare", "comparison_line"]

_SAME = ("scorer", "prompt_version")


def compare(first: Result, second: Result, *, key: str | Path | None = None) -> dict[str, Any]:
    """Compare two results of the same questions, whatever device they come from.

    Args:
        first: From a checkpoint, an artifact or a device.
        second: The same questions, by their ids.
        key: CSV ``question_id,answer``; without it the right answers that both results name.

    Returns:
        ``asked`` questions, ``n`` of them with a key; of ``first`` and ``second`` the artifact,
        ``accuracy``, ``interval`` and ``correct``; ``only_first`` and ``only_second``, how many
        only that one answered rightly; ``p_value`` of the exact McNemar test; ``agreement``, the
        share of questions to which both gave the same letter; ``reason`` where there is no
        accuracy; ``warnings`` on what else differs.

    Raises:
        InvalidInputError: If the ids differ, a result has no letters, or the key is unusable.
    """
    _check_ids(first, second)
    pair = (first, second)
    same = sum(one != "" and one == second.letters[name] for name, one in first.letters.items())
    record: dict[str, Any] = {
        "asked": len(first.letters),
        "agreement": same / len(first.letters),
        "n": 0,
        "first": _side(first, None, 0),
        "second": _side(second, None, 0),
        **dict.fromkeys(("only_first", "only_second", "p_value", "reason")),
        "warnings": _differences(first, second),
    }
    right, n, reason = _right(pair, key)
    if right is None:
        return {**record, "reason": reason}
    ours, theirs = right
    return {
        **record,
        "n": n,
        "first": _side(first, len(ours), n),
        "second": _side(second, len(theirs), n),
        "only_first": len(ours - theirs),
        "only_second": len(theirs - ours),
        "p_value": mcnemar_exact(len(ours - theirs), len(theirs - ours)),
    }


def comparison_line(record: Mapping[str, Any]) -> str:
    """Return a comparison in one line."""
    agreement = f"the same letter to {record['agreement']:.1%} of {record['asked']} questions"
    if record["p_value"] is None:
        return f"{agreement}; no accuracy ({record['reason']})"
    first, second = record["first"], record["second"]
    return (
        f"{first['accuracy']:.1%} against {second['accuracy']:.1%} (n {record['n']}), only one "
        f"right: {record['only_first']} against {record['only_second']}, "
        f"p {record['p_value']:.3g} (exact McNemar); {agreement}"
    )


def _check_ids(first: Result, second: Result) -> None:
    for result in (first, second):
        if not result.letters:
            raise InvalidInputError(
                f"the result of {result.artifact.id} ({result.workload.id}) has no letters",
                hint="Give results of the suite mobile_mmlu.",
            )
    ours, theirs = first.letters.keys(), second.letters.keys()
    if ours != theirs:
        raise InvalidInputError(
            f"the two results have {len(ours & theirs)} questions in common; "
            f"{len(ours - theirs)} and {len(theirs - ours)} are in one of them alone",
            hint="Run both on the same data, limit and seed.",
        )


def _right(
    pair: tuple[Result, Result], key: str | Path | None
) -> tuple[tuple[set[str], set[str]] | None, int, str | None]:
    """Return the ids that each answered rightly and how many have a key, or why that is unknown."""
    if key is not None:
        from .suites.mobile_mmlu.questions import read_key

        letters = read_key(Path(key))
        scored = [name for name in pair[0].letters if name in letters]
        ours, theirs = ({i for i in scored if one.letters[i] == letters[i]} for one in pair)
        reason = None if scored else "the key has none of these questions"
        return ((ours, theirs) if scored else None), len(scored), reason
    known = [one.metrics.get("correct_ids") for one in pair]
    counts = [one.metrics.get("n") for one in pair]
    if not all(isinstance(ids, list) for ids in known) or counts == [0, 0]:
        return None, 0, "no answer key was given"
    if counts[0] != counts[1]:
        return None, 0, "the two results were scored with different keys"
    ours, theirs = ({str(i) for i in ids or ()} for ids in known)
    n = counts[0]
    if (
        not isinstance(n, int)
        or not ours | theirs <= pair[0].letters.keys()
        or n < max(len(ours), len(theirs))
    ):
        raise InvalidInputError(
            "the right answers that the results name are not among their letters",
            hint="Get the results again, or give the key.",
        )
    return (ours, theirs), n, None


def _side(result: Result, correct: int | None, n: int) -> dict[str, Any]:
    known = {"artifact": result.artifact.id, "device": result.device.get("class")}
    if correct is None:
        return {**known, "accuracy": None, "interval": None, "correct": None}
    interval = list(wilson_interval(correct, n))
    return {**known, "accuracy": correct / n, "interval": interval, "correct": correct}


def _differences(first: Result, second: Result) -> list[str]:
    """Say what, beside the model, is not the same in two results."""
    found = [
        f"{key.replace('_', ' ')}: {first.metrics[key]} and {second.metrics[key]}"
        for key in _SAME
        if first.metrics.get(key) != second.metrics.get(key)
        and key in first.metrics
        and key in second.metrics
    ]
    digests = [_digest(one) for one in (first, second)]
    if None not in digests and digests[0] != digests[1]:
        found.append("question files: their checksums differ")
    return found


def _digest(result: Result) -> str | None:
    dataset = result.metrics.get("dataset")
    return dataset.get("sha256") if isinstance(dataset, dict) else None
