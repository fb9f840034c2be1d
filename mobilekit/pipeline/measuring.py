"""Profile and evaluate: the checkpoints before and after, and every artifact of the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit import evaluate
from mobilekit.core import console
from mobilekit.core.files import atomic_write_json, read_json, sha256_json
from mobilekit.profile.config import ProfileConfig
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.published import PublishedFigures
from mobilekit.schema.result import ArtifactRef, Result

from .context import hash_of, seeded

if TYPE_CHECKING:
    from mobilekit.recipe import Recipe

    from .context import Context


@dataclass(frozen=True)
class Subject:
    """Something that can be run: a checkpoint, or an artifact of the bundle."""

    id: str
    path: Path
    target: str | None
    sha256: str
    bytes: int
    tokenizer: str

    @property
    def ref(self) -> ArtifactRef:
        """How results name it."""
        return ArtifactRef(id=self.id, sha256=self.sha256, bytes=self.bytes)


def subjects(context: Context) -> Iterator[Subject]:
    """Yield what a run measures: ``before``, ``after`` where it differs, and the artifacts."""
    yield _checkpoint("before", context.source)
    if context.checkpoint != context.source:
        yield _checkpoint("after", context.checkpoint)
    if context.recipe.export is None:
        return
    bundle = open_bundle(context.root / "bundle")
    for item in bundle.manifest.artifacts:
        yield _artifact(bundle, item.id)


def _checkpoint(name: str, path: Path) -> Subject:
    size = sum(p.stat().st_size for p in path.glob("*.safetensors"))
    digest = hash_of(path).removeprefix("sha256:")
    return Subject(name, path, None, digest, size, tokenizer=digest)  # its hash covers both


def _artifact(bundle: Bundle, name: str) -> Subject:
    item = bundle.artifact(name)
    tokenizer = sha256_json([[f.path, f.sha256] for f in bundle.manifest.tokenizer])
    return Subject(name, bundle.root, name, item.sha256, item.total_bytes, tokenizer)


def profile_all(context: Context) -> None:
    """Profile every subject on every device of the recipe, one result file a workload."""
    config = context.recipe.profile
    assert config is not None
    for device in config.devices:
        for subject in subjects(context):
            step_id = f"profile-{device}-{subject.id}"
            inputs = {"artifact": subject.sha256, "config": config.model_dump(mode="json")}
            names = [f"results/{step_id}-{workload}.json" for workload in config.workloads]

            def work(subject: Subject = subject, device: str = device, names: Any = names) -> str:
                results = _profile(subject, device, config)
                for name, result in zip(names, results, strict=True):
                    atomic_write_json(context.root / name, result.to_json())
                return f"{subject.id}: {_summary(results)}"

            context.do("profile", step_id, inputs, names, work)


def _profile(subject: Subject, device: str, config: ProfileConfig) -> list[Result]:
    from mobilekit import profile

    results = profile.run(
        subject.path,
        device,
        artifacts=[subject.target] if subject.target else None,
        workloads=config.workloads,
        repetitions=config.repetitions,
        warmup=config.warmup,
        threads=config.threads,
    )
    return [result.model_copy(update={"artifact": subject.ref}) for result in results]


def _summary(results: list[Result]) -> str:
    from mobilekit import profile

    if all("skipped" in result.metrics for result in results):
        return "not profiled"
    return ", ".join(profile.summary_line(result) for result in results)


def check_suites(recipe: Recipe, source: Path) -> None:
    """Check, before any work, the data of every suite and that its windows fit the context.

    Raises:
        UsageError: If a window does not fit.
        InvalidInputError: If data is missing or unusable.
    """
    for config in recipe.evaluate:
        evaluate.data_digest(config)
        if recipe.export is not None:
            evaluate.at_shared_window(config, source, recipe.export.context_length)


def evaluate_all(context: Context) -> None:
    """Run every suite of the recipe on every subject that can be run here."""
    recipe = context.recipe
    chosen = [seeded(config, recipe.seed) for config in recipe.evaluate]
    if recipe.export is not None:
        length = recipe.export.context_length
        chosen = [evaluate.at_shared_window(c, context.source, length) for c in chosen]
    for subject in subjects(context):
        if (reason := evaluate.cannot_run(subject.path, subject.target)) is not None:
            console.status(f"[evaluate]  {subject.id}: not evaluated, {reason}")
            continue
        for index, config in enumerate(chosen):
            _evaluate(context, subject, f"evaluate-{config.suite}-{index}-{subject.id}", config)


def _evaluate(
    context: Context, subject: Subject, step_id: str, config: evaluate.SuiteConfig
) -> None:
    inputs = {
        "artifact": subject.sha256,
        "tokenizer": subject.tokenizer,
        "config": config.model_dump(mode="json"),
        "data": evaluate.data_digest(config),
    }
    output = f"results/{step_id}.json"
    # answers of an interrupted run of this very step; other inputs have another file
    answers = context.root / ".state" / f"{step_id}-{sha256_json(inputs)[:16]}.answers.jsonl"

    def work() -> str:
        result = evaluate.run_on(
            subject.path, subject.target, config, artifact=subject.ref, resume_file=answers
        )
        atomic_write_json(context.root / output, result.to_json())
        answers.unlink(missing_ok=True)
        return f"{subject.id}: {evaluate.summary_line(result)}"

    context.do("evaluate", step_id, inputs, [output], work)


def published(context: Context) -> tuple[PublishedFigures, ...]:
    """Return what others published on the question sets that this run asked, a set once."""
    found = {}
    for name in sorted(context.directory.written):
        if name.startswith("results/evaluate-mobile_mmlu-"):
            figures = evaluate.published_on(read_json(context.root / name)["metrics"]["dataset"])
            if figures is not None:
                found[figures.dataset] = figures
    return tuple(found.values())


def remove_stale(context: Context) -> None:
    """Remove the results of an earlier recipe, so that no report mixes them in."""
    for path in (context.root / "results").glob("*.json"):
        if f"results/{path.name}" not in context.directory.written:
            path.unlink()
