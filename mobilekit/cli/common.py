"""What every command shares: the common options, and how an answer is shown."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from mobilekit.core import console


@dataclass(frozen=True)
class Answer:
    """What a command has to say: one JSON document, or a few lines and a table for people."""

    data: Any
    lines: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=())
    closing: Sequence[str] = ()
    exit_code: int = 0


IgnoreEstimates = Annotated[
    bool,
    typer.Option(
        "--ignore-estimates", help="Go on where memory or disk is estimated not to suffice."
    ),
]
LoadingDevice = Annotated[
    str,
    typer.Option(help="Where weights and activations are worked on: auto, cpu or cuda."),
]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
_VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="More detail on stderr.")]
_DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_SHARED = {"as_json": _JSON, "quiet": _QUIET, "verbose": _VERBOSE, "debug": _DEBUG}


def command(function: Callable[..., Answer]) -> Callable[..., None]:
    """Give a command the common options, and show the answer that it returns."""
    signature = inspect.signature(function, eval_str=True)
    extra = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for n, annotation in _SHARED.items()
    ]

    @functools.wraps(function)
    def run(**given: Any) -> None:
        shared = {name: given.pop(name) for name in _SHARED}
        console.configure(quiet=shared["quiet"], verbose=shared["verbose"])
        answer = function(**given)
        show(answer, as_json=shared["as_json"])
        if answer.exit_code:
            raise typer.Exit(answer.exit_code)

    parameters = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()
    ]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters, *extra], return_annotation=None
    )
    run.__annotations__ = {p.name: p.annotation for p in [*parameters, *extra]}
    return run


def show(answer: Answer, *, as_json: bool) -> None:
    """Print an answer to stdout."""
    if as_json:
        console.emit_json(answer.data)
        return
    for line in answer.lines:
        console.emit(line)
    if answer.rows:
        console.table(answer.headers, answer.rows)
    for line in answer.closing:
        console.emit(line)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` pairs as a mapping; values are read as YAML scalars.

    Raises:
        UsageError: If a pair has no ``=``.
    """
    import yaml

    from mobilekit.core.errors import UsageError

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--set got '{pair}', expected key=value", hint="For example: --set sparsity=0.25"
            )
        try:
            settings[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(
                f"--set {key}: '{value}' is not a value", hint="Quote text: --set 'key=\"text\"'"
            ) from None
    return settings


def megabytes(count: float) -> str:
    """Return bytes as MB (10^6) for people."""
    return f"{count / 1e6:.2f} MB"
