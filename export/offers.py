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
        UsageError: Unknown target or precision, or one that a target lacks: with the targets that
            offer it, and what to write instead.
    """
    offers = {name: BACKENDS.get(name).precisions for name in (*targets, *BACKENDS.names())}
    known = dict.fromkeys(precision for offered in offers.values() for precision in offered)
    prefix = f"{where}: " if where else ""
    for precision in precisions:
        if precision not in known:
            raise UsageError(
                f"{prefix}there is no precision '{precision}'",
                hint=f"Known precisions: {', '.join(known)}.",
            )
        lacking = [target for target in targets if precision not in offers[target]]
        if lacking:
            shared = [p for p in known if all(p in offers[target] for target in targets)]
            offering = [name for name in offers if precision in offers[name]]
            apart = [name for name in offering if name in targets] or offering
            write = _recipe if where else _options
            raise UsageError(
                f"{prefix}target '{lacking[0]}' has no precision '{precision}'; it "
                f"is offered by {' and '.join(offering)}",
                hint=_advice(write(apart, precision), lacking, shared),
            )


def _advice(written: str, lacking: list[str], shared: list[str]) -> str:
    """Return what to write for the precision, and what all of the targets have."""
    return (
        f"Export it apart, without {' and '.join(lacking)}: {written}; "
        f"every target that you asked for has {', '.join(shared)}."
    )


def _options(targets: list[str], precision: str) -> str:
    return " ".join(f"--target {name}" for name in targets) + f" --precision {precision}"


def _recipe(targets: list[str], precision: str) -> str:
    return f"export: {{targets: [{', '.join(targets)}], precisions: [{precision}]}}"
