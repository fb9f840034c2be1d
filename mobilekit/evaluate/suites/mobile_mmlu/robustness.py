"""Whether a model chooses an option for what it says or for where it stands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .answers import Answer
from .orders import in_file
from .score import NO_KEY, position_prior

__all__ = ["order_metrics", "order_record"]

_ONE_ORDER = "one order was asked"


def order_metrics(
    answers: Sequence[Answer], key: Mapping[str, str] | None, rotations: int
) -> dict[str, Any]:
    """Figures of one question asked in several orders of its options.

    ``acc_mean`` is the mean accuracy over orders, ``acc_worst`` the share of questions answered
    rightly in every one, ``consistency`` the share whose chosen option (by its letter in the file)
    is the same in every one, ``position_prior`` the histogram of the letters as shown over all
    orders. A question without an answer in some order is neither right nor consistent.

    Args:
        answers: All orders of all questions.
        key: Right letter of the file's order a question id.
        rotations: Orders a question: 1, 4 or 24.
    """
    chosen: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        chosen[answer.id].append(in_file(answer.letter, answer.order))
    prior = position_prior(answer.letter for answer in answers)
    return order_record(chosen, key, rotations, prior)


def order_record(
    chosen: Mapping[str, Sequence[str]],
    key: Mapping[str, str] | None,
    rotations: int,
    prior: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the figures from the file's letters that were chosen in every order.

    Args:
        chosen: Letters of the file a question id, "" or "-" where there is no answer.
        key: Right letter a question id.
        rotations: Orders a question.
        prior: Histogram of the letters as shown.
    """
    record: dict[str, Any] = {
        "rotations": rotations,
        **dict.fromkeys(("acc_mean", "acc_worst", "consistency")),
        "position_prior": prior,
        "reason": None,
        "letters": {},
    }
    if rotations == 1:
        return {**record, "reason": _ONE_ORDER}
    steady = sum(len(set(ones)) == 1 and set(ones) <= set("ABCD") for ones in chosen.values())
    record["consistency"] = steady / len(chosen)
    record["letters"] = {name: "".join(one or "-" for one in ones) for name, ones in chosen.items()}
    scored = [name for name in chosen if key is not None and name in key]
    if key is None or not scored:
        return {
            **record,
            "reason": NO_KEY if key is None else "the key has none of these questions",
        }
    right = [[one == key[name] for one in chosen[name]] for name in scored]
    record["acc_mean"] = sum(map(sum, right)) / (len(right) * rotations)
    record["acc_worst"] = sum(map(all, right)) / len(right)
    return record
