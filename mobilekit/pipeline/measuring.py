"""Profile and evaluate: the checkpoints before and after, and every artifact of the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core import console
from mobilekit.core.files import atomic_write_json
from mobilekit.profile.config import ProfileConfig
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.result import ArtifactRef, Result

from .steps import hash_of, seeded

if TYPE_CHECKING:
    from .steps import Context


@dataclass(frozen=True)
class Subject:
    """Something that can be run: a checkpoint, or an artifact of the bundle."""

    id: str
    path: Path
    target: str | None
    sha256: str
    bytes: int

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
    return Subject(name, path, None, hash_of(path).removeprefix("sha256:"), size)


def _artifact(bundle: Bundle, name: str) -> Subject:
    item = bundle.artifact(name)
    return Subject(name, bundle.root, name, item.sha256, item.total_bytes)


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


def evaluate_all(context: Context) -> None:
    """Run every suite of the recipe on every subject that can be run here."""
    from mobilekit import evaluate

    for subject in subjects(context):
        if (reason := evaluate.cannot_run(subject.path, subject.target)) is not None:
            console.status(f"[evaluate]  {subject.id}: not evaluated, {reason}")
            continue
        for index, chosen in enumerate(context.recipe.evaluate):
            config = seeded(chosen, context.recipe.seed)
            step_id = f"evaluate-{config.suite}-{index}-{subject.id}"
            inputs = {"artifact": subject.sha256, "config": config.model_dump(mode="json")}
            output = f"results/{step_id}.json"

            def work(
                subject: Subject = subject, config: evaluate.SuiteConfig = config, out: str = output
            ) -> str:
                result = evaluate.run_on(subject.path, subject.target, config, artifact=subject.ref)
                atomic_write_json(context.root / out, result.to_json())
                return f"{subject.id}: {evaluate.summary_line(result)}"

            context.do("evaluate", step_id, inputs, [output], work)


def remove_stale(context: Context) -> None:
    """Remove the results of an earlier recipe, so that no report mixes them in."""
    for path in (context.root / "results").glob("*.json"):
        if f"results/{path.name}" not in context.directory.written:
            path.unlink()
