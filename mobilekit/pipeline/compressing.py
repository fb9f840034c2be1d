"""Compress: file to file where a recipe's method allows it, through memory otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilekit import compress as methods
from mobilekit.core import console
from mobilekit.core.files import sha256_file
from mobilekit.models import load, save
from mobilekit.recipe import Recipe
from mobilekit.schema.plan import Plan

from .context import Context, hash_of, replace


def compress(context: Context) -> None:
    """Apply the recipe's methods, in order, and save the checkpoint."""
    recipe = context.recipe
    if not recipe.compress:
        return
    out = context.compressed
    inputs = {
        "source": hash_of(context.source),
        "model": recipe.model.model_dump(mode="json", exclude={"source"}),
        "steps": [step.model_dump(mode="json") for step in recipe.compress],
        "seed": recipe.seed,
    }
    texts = {path for config in recipe.method_configs() for path in config.files()}
    if texts:  # a text that has changed is looked at anew
        inputs["texts"] = {path: sha256_file(Path(path)) for path in sorted(texts)}

    def work() -> str:
        steps = _on_disk(context) if is_on_disk(recipe) else _in_memory(context)
        return "; ".join(_plan_line(step.method, step.config, step.summary) for step in steps)

    context.do("compress", "compress", inputs, [out.name], work)


def is_on_disk(recipe: Recipe) -> bool:
    """Tell whether a recipe's compression works file to file, its model never in memory.

    So it is where one method does all, plans by the weights alone and only cuts, and no other
    dtype is asked for. The checkpoint is the same in both ways, but for the shards, which are cut
    as the source's. A second method would read what the first has left, and that is on no disk
    yet.
    """
    from mobilekit.compress.stored import plans_from_disk

    if len(recipe.compress) != 1 or recipe.model.dtype != "auto":
        return False
    (config,) = recipe.method_configs()
    method = methods.METHODS.get(recipe.compress[0].method)
    return plans_from_disk(method, getattr(config, "variant", None))


def _on_disk(context: Context) -> list[Plan]:
    """Cut the source's files into those of the result; interrupted, the next call goes on."""
    from mobilekit.compress.stored import compress_stored

    (step,), out = context.recipe.compress, context.compressed
    settings = {"seed": context.recipe.seed, **step.settings}
    device = context.recipe.model.device

    def write() -> list[Plan]:
        return compress_stored(context.source, out, method=step.method, device=device, **settings)

    return replace(out, write)


def _in_memory(context: Context) -> list[Plan]:
    """Load the model, let every method plan and cut in turn, save."""
    recipe, out = context.recipe, context.compressed
    model = load(context.source, device=recipe.model.device, dtype=recipe.model.dtype)
    made = []
    for step in recipe.compress:
        plan = methods.plan(model, step.method, **{"seed": recipe.seed, **step.settings})
        for warning in plan.warnings:
            console.warn(f"{step.method}: {warning}")
        model = methods.apply(model, plan)
        made.append(plan)
    replace(out, lambda: save(model, out, tokenizer_from=context.source))
    return made


def _plan_line(method: str, config: dict[str, Any], summary: dict[str, Any]) -> str:
    shown = [f"{k} {v}" for k, v in config.items() if k in ("variant", "sparsity")]
    before, after = summary.get("parameters_before"), summary.get("parameters_after")
    if before and after:
        shown.append(f"{before / 1e6:.2f} M → {after / 1e6:.2f} M parameters")
    return " ".join([method, ", ".join(shown)])
