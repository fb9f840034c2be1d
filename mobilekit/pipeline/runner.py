"""Carry out a recipe, step by step, each skipped where it is done already."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import mobilekit
from mobilekit.core.cache import cache_root
from mobilekit.core.errors import CheckFailedError
from mobilekit.core.files import atomic_write_json, read_json
from mobilekit.core.needs import announce, check_needs
from mobilekit.models import describe, resolve
from mobilekit.recipe import Recipe, check_recipe, load_recipe
from mobilekit.schema.run import RUN_FILE, ModelPair, ModelRecord, RecoveryRecord, RunRecord

from . import steps
from .budget import check_budget
from .context import Context, hash_of
from .environment import host, versions
from .measuring import published, remove_stale
from .preflight import estimate, preflight, step_names
from .state import RunDirectory, check_run_directory, open_run


def run(
    recipe: Recipe | dict[str, Any] | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    command: str | None = None,
    ignore_estimates: bool = False,
) -> RunRecord:
    """Carry out a recipe.

    Args:
        recipe: A recipe, its plain data, or the path of a recipe file.
        out: Run directory: ``checkpoint/``, ``bundle/``, ``results/``, ``run.json``,
            ``report.html``.
        resume: Go on with a directory that was begun; steps whose inputs changed run again.
        command: How the user started the run, for the report.
        ignore_estimates: Go on, with a warning, where memory or disk is estimated not to suffice.

    Returns:
        The record that is also in ``run.json``.

    Raises:
        InvalidInputError: A wrong recipe or a damaged checkpoint; nothing was written.
        UsageError: An unknown name, a directory that exists, or memory or disk that is estimated
            not to suffice.
        CheckFailedError: Everything ran, but parity or the budget failed; the report is there.
    """
    recipe = _as_recipe(recipe)
    check_run_directory(Path(out), resume=resume)  # first: it takes no time
    source = preflight(recipe)
    with open_run(Path(out), resume=resume) as directory:
        shown = command or f"mobilekit run recipe.yaml --out {out}"
        needs = {need.step: need for need in estimate(recipe, source)}
        context = Context(recipe, directory, source, _created(directory), needs, ignore_estimates)
        _announce(context)
        failures = _carry_out(context, shown)
    if failures:
        raise CheckFailedError(
            "; ".join(failures), hint=f"See {Path(out) / 'report.html'} for the details."
        )
    return _record(context, shown)


def _as_recipe(recipe: Recipe | dict[str, Any] | str | Path) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return check_recipe(recipe) if isinstance(recipe, dict) else load_recipe(recipe)


def _created(directory: RunDirectory) -> str:
    """Return when the run began; a resumed run keeps its date."""
    path = directory.root / ".state" / "created.json"
    if not path.is_file():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        atomic_write_json(path, {"created": now})
    return str(read_json(path)["created"])


def _carry_out(context: Context, command: str) -> list[str]:
    """Do every step of the recipe; return the checks that failed."""
    steps.compress(context)
    steps.recover(context)
    failures: list[str] = []
    if context.recipe.export is not None:
        steps.export(context)
        failures += steps.verify(context)
    steps.profile(context)
    steps.evaluate(context)
    remove_stale(context)
    if context.recipe.export is not None:
        failures += check_budget(context.recipe.budget, context.directory.root)
    record = _record(context, command)
    atomic_write_json(context.directory.root / RUN_FILE, record.to_json())
    steps.report(context)
    return failures


def _announce(context: Context) -> None:
    """Print the plan with its estimates; refuse one that does not fit the machine."""
    names = step_names(context.recipe)
    facts = describe(context.source)
    headline = (
        f"Plan   {facts['class']}, {facts['parameters'] / 1e6:.2f} M parameters · "
        f"{' → '.join(names)} · output {context.directory.root}/"
    )
    places = {"output": context.root, "cache": cache_root()}
    needs = list(context.needs.values())
    announce(headline, needs, places)
    check_needs(needs, places, ignore_estimates=context.ignore_estimates)


def _record(context: Context, command: str) -> RunRecord:
    root = context.directory.root
    final = context.checkpoint
    before = _model_record(context.source, None)
    after = _model_record(final, None if final == context.source else final.name)
    recovery = root / "results" / "recovery.json"
    return RunRecord(
        mobilekit=mobilekit.__version__,
        created=context.created,
        command=command,
        recipe=context.recipe.to_json(),
        versions=versions(),
        host=host(),
        steps=tuple(context.directory.records),
        models=ModelPair(before=before, after=after),
        recovery=RecoveryRecord.parse(read_json(recovery), str(recovery))
        if context.recipe.recover is not None
        else None,
        published=published(context),
    )


def _model_record(path: Path, shown: str | None) -> ModelRecord:
    facts = describe(resolve(path))
    return ModelRecord.parse(
        {
            "hash": hash_of(path),
            "class": facts["class"],
            "parameters": facts["parameters"],
            "active_parameters": facts["active_parameters"],
            "weight_bytes": facts["weight_bytes"],
            "path": shown,
        },
        str(path),
    )
