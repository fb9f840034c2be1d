"""Profile and evaluate: the checkpoints before and after, and every artifact of the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilekit.core import console
from mobilekit.core.files import atomic_write_json
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.result import ArtifactRef

from .steps import hash_of

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
    if not (context.root / "bundle").is_dir():
        return
    bundle = open_bundle(context.root / "bundle")
    for item in bundle.manifest.artifacts:
        yield _artifact(bundle, item.id)


def _checkpoint(name: str, path: Path) -> Subject:
    size = sum(p.stat().st_size for p in path.glob("*.safetensors"))
    return Subject(name, path, None, hash_of(path).removeprefix("sha256:"), size)


def _artifact(bundle: Bundle, name: str) -> Subject:
    item = bundle.artifact(name)
    size = sum(record.bytes for record in item.files)
    return Subject(name, bundle.root, name, item.files[0].sha256, size)


def profile_all(context: Context) -> None:
    """Profile every subject on every device of the recipe, one result file a workload."""
    from mobilekit import profile

    config = context.recipe.profile
    assert config is not None
    everything = list(subjects(context))
    for device in config.devices:
        for subject in everything:
            inputs = {"artifact": subject.sha256, "config": config.model_dump(mode="json")}

            def work(subject: Subject = subject, device: str = device) -> str:
                results = profile.run(
                    subject.path,
                    device,
                    artifacts=[subject.target] if subject.target else None,
                    workloads=config.workloads,
                    repetitions=config.repetitions,
                    warmup=config.warmup,
                    threads=config.threads,
                )
                if all("skipped" in result.metrics for result in results):
                    lines = ["not profiled"]
                else:
                    lines = [profile.summary_line(result) for result in results]
                for result in results:
                    named = result.model_copy(update={"artifact": subject.ref})
                    name = f"profile-{device}-{subject.id}-{result.workload.id}.json"
                    atomic_write_json(context.root / "results" / name, named.to_json())
                return f"{subject.id}: {', '.join(lines)}"

            context.do("profile", f"profile-{device}-{subject.id}", inputs, "results", work)


def evaluate_all(context: Context) -> None:
    """Run every suite of the recipe on every subject that can be run here."""
    from mobilekit import evaluate

    for subject in subjects(context):
        if (reason := evaluate.cannot_run(subject.path, subject.target)) is not None:
            console.status(f"[evaluate]  {subject.id}: not evaluated, {reason}")
            continue
        for index, config in enumerate(context.recipe.evaluate):
            step_id = f"evaluate-{config.suite}-{index}-{subject.id}"
            inputs = {"artifact": subject.sha256, "config": config.model_dump(mode="json")}
            output = f"results/{step_id}.json"

            def work(
                subject: Subject = subject, config: evaluate.SuiteConfig = config, out: str = output
            ) -> str:
                result = evaluate.run_on(subject.path, subject.target, config, artifact=subject.ref)
                atomic_write_json(context.root / out, result.to_json())
                return f"{subject.id}: {evaluate.summary_line(result)}"

            context.do("evaluate", step_id, inputs, output, work)
