"""Accuracy of letters that are already there: a result from a device, or one made without a key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import read_json
from mobilekit.schema.result import Result

if TYPE_CHECKING:
    from .suites.mobile_mmlu.dataset import QuestionSet
    from .suites.mobile_mmlu.fields import Field

__all__ = ["read_result", "rescore"]

_OF_A_KEY = ("accuracy", "interval", "n", "correct", "categories", "fields", "correct_ids")


def read_result(path: str | Path) -> Result:
    """Read a result file.

    Raises:
        InvalidInputError: If it is missing or is no result.
    """
    return Result.parse(read_json(Path(path)), str(path))


def rescore(result: Result, key: str | Path, *, data: str | Path | None = None) -> Result:
    """Score the letters of a result with a key.

    Args:
        result: Has letters by question id.
        key: CSV ``question_id,answer``.
        data: The questions, to tell fields and categories; without them there is the total alone.

    Returns:
        The result with the metrics that a key gives; all else stays as it was measured.

    Raises:
        InvalidInputError: If there are no letters, the key is unusable, or the data lack a
            question.
    """
    from .suites.mobile_mmlu.dataset import load_dataset
    from .suites.mobile_mmlu.questions import read_key
    from .suites.mobile_mmlu.score import CHANCE, accuracies, position_prior, weighted

    if not result.letters:
        raise InvalidInputError(
            f"the result of {result.artifact.id} ({result.workload.id}) has no letters",
            hint="Give a result of the suite mobile_mmlu.",
        )
    letters, right = result.letters, read_key(Path(key))
    unanswered = sum(not letter for letter in letters.values())
    dataset = None if data is None else load_dataset(data)
    own = {
        "suite": "mobile_mmlu",
        "dataset": dataset.record() if dataset else {"name": result.workload.id},
        "chance": CHANCE,
        "asked": len(letters),
        "invalid": {"no answer": unanswered} if unanswered else {},
        "invalid_rate": unanswered / len(letters),
        "position": position_prior(letters.values()),
    }
    kept = {name: value for name, value in result.metrics.items() if name not in _OF_A_KEY}
    fields = None if dataset is None else _fields(letters, dataset)
    found = accuracies(letters, right, fields)
    metrics = {**own, **kept, **found}
    with _as_damage(result):
        metrics["sampling"] = weighted(kept.get("sampling"), found)
        metrics |= _variants(kept, right)
    return result.model_copy(update={"metrics": metrics})


@contextmanager
def _as_damage(result: Result) -> Iterator[None]:
    """Say of a result, whose metrics no schema checks, that they are not as a run writes them."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidInputError(
            f"the metrics of the result of {result.artifact.id} ({result.workload.id}) are not "
            f"as a run writes them ({type(error).__name__})",
            hint="Get the result again, or make it anew.",
        ) from error


def _fields(letters: Mapping[str, str], dataset: QuestionSet) -> Mapping[str, Field]:
    known = {question.id: question.field for question in dataset.questions}
    missing = sum(name not in known for name in letters)
    if missing:
        raise InvalidInputError(
            f"{missing} of the {len(letters)} questions in the result are not in {dataset.name}",
            hint="Give the data that the result was made with, or leave data out.",
        )
    return known


def _variants(metrics: Mapping[str, Any], key: Mapping[str, str]) -> dict[str, Any]:
    """Score the letters of other orders, and of other ways to compare continuations."""
    from .suites.mobile_mmlu.robustness import order_record
    from .suites.mobile_mmlu.score import accuracies

    found: dict[str, Any] = {}
    order, cloze = metrics.get("order"), metrics.get("cloze")
    if order is not None and order["letters"]:
        rotations = int(order["rotations"])
        found["order"] = order_record(order["letters"], key, rotations, order["position_prior"])
    if cloze is not None:
        found["cloze"] = {}
        for name, one in cloze.items():
            scored = accuracies(one["letters"], key, None)
            kept = {k: scored.get(k, 0) for k in ("accuracy", "interval", "n", "correct")}
            found["cloze"][name] = {**kept, "letters": one["letters"]}
    return found
