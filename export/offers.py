"""Which target offers which precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mobilekit.core.errors import UsageError

from .backends import BACKENDS


def check_offered(targets: Sequence[str], precisions: Iterable[str], *, where: str = "") -> None:
    """Refuse a precision that one of the targets lacks: an export has each in each.

    Args:
        targets: Targets that are asked for.
        precisions: Precisions that are asked for of each.
        where: Name of the recipe that asks, if one does.

    Raises:
        UsageError: Unknown target, or a precision that one lacks: with those that all have.
    """
    offers = [BACKENDS.get(target).precisions for target in targets]
    shared = [name for name in offers[0] if all(name in offered for offered in offers)]
    for precision in precisions:
        for target, offered in zip(targets, offers, strict=True):
            if precision not in offered:
                raise UsageError(
                    f"{where}{': ' if where else ''}target '{target}' has no precision "
                    f"'{precision}'",
                    hint=f"Known precisions: {', '.join(shared)}.",
                )
