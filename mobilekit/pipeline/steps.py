"""The steps of a run: each says what it depends on, what it writes, and how."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from mobilekit import compress as methods
from mobilekit.core import console
from mobilekit.core.device import choose_device
from mobilekit.core.errors import UsageError
from mobilekit.core.files import sha256_file
from mobilekit.core.needs import Need
from mobilekit.models import (
    checkpoint_hash,
    describe,
    has_tokenizer,
    load,
    require_tokenizer,
    resolve,
    save,
)
from mobilekit.models.families import family_for_class
from mobilekit.recipe import Recipe
from mobilekit.schema.run import StepName

from .state import RunDirectory


@dataclass
class Context:
    """One run under way."""

    recipe: Recipe
    directory: RunDirectory
    source: Path
    created: str
    needs: dict[str, Need] = field(default_factory=dict)
    ignore_estimates: bool = False

    @property
    def root(self) -> Path:
        """The run directory."""
        return self.directory.root

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that is exported: the last one made, or the source itself."""
        if self.recipe.recover is not None or self.recipe.compress:
            return self.root / "checkpoint"
        return self.source

    @property
    def compressed(self) -> Path:
        """The checkpoint after compression, before recovery."""
        if not self.recipe.compress:
            return self.source
        return self.root / ("compressed" if self.recipe.recover is not None else "checkpoint")

    def do(
        self, name: StepName, step_id: str, inputs: Any, outputs: list[str], work: Callable[[], str]
    ) -> None:
        """Do one step unless it is done already, and say so in one line."""
        need = self.needs.get(name)
        done = self.directory.step(
            step_id,
            inputs,
            work,
            name=name,
            outputs=outputs,
            estimated_peak_bytes=need.own_bytes if need is not None else None,
        )
        record = self.directory.records[-1]
        took = "done before" if done else f"{record.seconds:.1f} s"
        console.status(f"{f'[{name}]':12}{record.detail}   {took}")


@lru_cache(maxsize=8)
def _hash_at(path: Path, stamp: tuple[int, ...]) -> str:
    return checkpoint_hash(path)


def hash_of(path: Path) -> str:
    """Return a checkpoint's content hash; read again only where a file changed."""
    files = sorted(p for p in path.iterdir() if p.is_file())
    return _hash_at(path, tuple(p.stat().st_mtime_ns for p in files))


Seeded = TypeVar("Seeded", bound=BaseModel)


def seeded(config: Seeded, seed: int) -> Seeded:
    """Return settings with the recipe's seed, where they have one and do not name their own."""
    has_seed = "seed" in type(config).model_fields and "seed" not in config.model_fields_set
    return config.model_copy(update={"seed": seed}) if has_seed else config


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
        model = load(context.source, device=recipe.model.device, dtype=recipe.model.dtype)
        details = []
        for step in recipe.compress:
            settings = {"seed": recipe.seed, **step.settings}
            plan = methods.plan(model, step.method, **settings)
            for warning in plan.warnings:
                console.warn(f"{step.method}: {warning}")
            model = methods.apply(model, plan)
            details.append(_plan_line(step.method, plan.config, plan.summary))
        _replace(out, lambda: save(model, out, tokenizer_from=context.source))
        return "; ".join(details)

    context.do("compress", "compress", inputs, [out.name], work)


def _plan_line(method: str, config: dict[str, Any], summary: dict[str, Any]) -> str:
    shown = [f"{k} {v}" for k, v in config.items() if k in ("variant", "sparsity")]
    before, after = summary.get("parameters_before"), summary.get("parameters_after")
    if before and after:
        shown.append(f"{before / 1e6:.2f} M → {after / 1e6:.2f} M parameters")
    return " ".join([method, ", ".join(shown)])


def _replace(out: Path, write: Callable[[], object]) -> None:
    """Remove what an earlier run of the step left, then write anew."""
    if out.is_dir():
        shutil.rmtree(out)
    write()


def recover(context: Context) -> None:
    """Train the compressed checkpoint, the source as its teacher."""
    if context.recipe.recover is not None:
        from .recovery import recover_step

        recover_step(context, seeded(context.recipe.recover, context.recipe.seed))


# what the manifest says of the recipe; the rest of it measures
_MAKES_THE_BUNDLE = ("version", "seed", "model", "compress", "recover", "export")


def export(context: Context) -> None:
    """Build the bundle."""
    config = context.recipe.export
    assert config is not None
    made_by = context.recipe.to_json(of=_MAKES_THE_BUNDLE)
    inputs = {"checkpoint": hash_of(context.checkpoint), "recipe": made_by}

    def work() -> str:
        from mobilekit import export as exporter

        out = context.root / "bundle"

        def build() -> None:
            exporter.build(
                context.checkpoint,
                out,
                targets=config.targets,
                precisions=config.precisions,
                context_length=config.context_length,
                overrides=config.overrides,
                recipe=made_by,
                ignore_estimates=context.ignore_estimates,
            )

        _replace(out, build)
        return f"{', '.join(config.targets)} in {', '.join(config.precisions)}"

    context.do("export", "export", inputs, ["bundle"], work)


def verify(context: Context) -> list[str]:
    """Check the bundle's files, and its parity as just measured; return what failed."""
    from mobilekit import export as exporter
    from mobilekit.schema.bundle import open_bundle

    bundle = open_bundle(context.root / "bundle")
    exporter.check_files(bundle)  # on every run: a file may have changed since
    artifacts = bundle.manifest.artifacts
    failed = [item for item in artifacts if item.parity.passed is False]

    def work() -> str:
        executed = sum(item.parity.executed for item in artifacts)
        return (
            f"{executed} of {len(artifacts)} artifacts run against eager, {len(failed)} outside "
            "tolerance, every checksum right"
        )

    context.do("verify", "verify", {"manifest": bundle.manifest.to_json()}, [], work)
    return [
        f"{item.id} is outside its parity tolerance, first at {item.parity.first_diverging_layer}"
        for item in failed
    ]


def profile(context: Context) -> None:
    """Measure the checkpoints before and after, and every artifact."""
    if context.recipe.profile is not None:
        from .measuring import profile_all

        profile_all(context)


def evaluate(context: Context) -> None:
    """Score the checkpoints before and after, and every artifact."""
    if context.recipe.evaluate:
        from .measuring import evaluate_all

        evaluate_all(context)


def report(context: Context) -> None:
    """Write the page and the model card."""
    from mobilekit import report as reporter

    reporter.write(context.root)
