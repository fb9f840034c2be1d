"""Before any work: which steps a recipe has, whether they can run, and what they will need."""

from __future__ import annotations

from pathlib import Path

from mobilekit import compress as methods
from mobilekit.core import console
from mobilekit.core.device import choose_device
from mobilekit.core.errors import UsageError
from mobilekit.core.needs import Need
from mobilekit.models import describe, has_tokenizer, require_tokenizer, resolve
from mobilekit.models.families import family_for_class
from mobilekit.recipe import Recipe


def step_names(recipe: Recipe) -> list[str]:
    """Return the names of the steps that a recipe asks for, in order."""
    names = [step.method for step in recipe.compress]
    names += ["recover"] if recipe.recover is not None else []
    names += ["export", "verify"] if recipe.export is not None else []
    names += ["profile"] if recipe.profile is not None else []
    names += ["evaluate"] if recipe.evaluate else []
    return [*names, "report"]


def preflight(recipe: Recipe) -> Path:
    """Check what can be checked before any work: source, architecture, tokenizer, device.

    Returns:
        The checkpoint directory.
    """
    source = resolve(recipe.model.source)
    family_for_class(describe(source)["class"])
    choose_device(recipe.model.device)
    _check_dtype(recipe)
    if recipe.export is not None:
        from mobilekit import export as exporter

        exporter.check_context(source, recipe.export.context_length)
    if recipe.export is not None or recipe.evaluate or recipe.recover is not None:
        require_tokenizer(source)
    elif not has_tokenizer(source):
        console.warn(f"{source} has no tokenizer; it can be compressed, but not exported")
    for config in recipe.method_configs():
        methods.check_inputs(config, source)
    if recipe.recover is not None and recipe.recover.files():
        from .recovery import check_data

        check_data(recipe.recover, source)
    if recipe.evaluate:
        from . import measuring

        measuring.check_suites(recipe, source)
    return source


def _check_dtype(recipe: Recipe) -> None:
    """Refuse a dtype that nothing would apply: the checkpoint that goes in is left as it is."""
    if recipe.model.dtype != "auto" and not recipe.compress:
        raise UsageError(
            f"model.dtype is {recipe.model.dtype}, but no compress step would write it",
            hint="Leave model.dtype at auto, or choose the precision under export.",
        )


def estimate(recipe: Recipe, source: Path) -> list[Need]:
    """Return the estimated need of every step, from the source checkpoint's headers."""
    from mobilekit import export as exporter

    from .estimate import step_needs

    facts, config = exporter.facts_of(source), recipe.export
    plan = None
    if config is not None:
        plan = exporter.plan_export(facts, config.targets, config.precisions, config.context_length)
    return step_needs(recipe, facts, plan)
