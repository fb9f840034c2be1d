"""The steps of a run: each says what it depends on, what it writes, and how."""

from __future__ import annotations

from .compressing import compress
from .context import Context, hash_of, replace, seeded

__all__ = ["compress", "evaluate", "export", "profile", "recover", "report", "verify"]


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

        replace(out, build)
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
