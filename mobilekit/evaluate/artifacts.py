"""Suites on what lies on disk: a checkpoint, or the artifacts of a bundle."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.suggest import did_you_mean
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.manifest import Artifact
from mobilekit.schema.result import ArtifactRef, Result

from .config import MobileMMLUConfig, PerplexityConfig, SuiteConfig

if TYPE_CHECKING:
    from mobilekit.data.tokenizer import TextTokenizer
    from mobilekit.runtime.base import TokenLogits

__all__ = ["cannot_run", "make_config", "make_configs", "run_on", "summary_line", "targets_of"]

_CHECKPOINT = "torch"
_SETTINGS: dict[str, type[PerplexityConfig] | type[MobileMMLUConfig]] = {
    "mobile_mmlu": MobileMMLUConfig,
    "perplexity": PerplexityConfig,
}
_PACKAGES = {"mlpackage": "coremltools", "onnx": "onnxruntime", "pte": "executorch"}


def make_config(suite: str, settings: dict[str, Any]) -> SuiteConfig:
    """Return the settings of a suite, checked.

    Raises:
        UsageError: If the suite is unknown.
        InvalidInputError: If a setting is unknown or out of range.
    """
    if suite not in _SETTINGS:
        raise UsageError(
            f"unknown suite '{suite}'{did_you_mean(suite, _SETTINGS)}",
            hint=f"Known suites: {', '.join(sorted(_SETTINGS))}.",
        )
    return _SETTINGS[suite].parse({**settings, "suite": suite}, f"suite {suite}")


def make_configs(suites: Sequence[str], settings: dict[str, Any]) -> list[SuiteConfig]:
    """Return the settings of several suites: each suite takes those that it has.

    Raises:
        UsageError: If a suite is unknown.
        InvalidInputError: If a setting is out of range, or none of the suites has it.
    """
    if len(suites) == 1:
        return [make_config(suites[0], settings)]
    keys = {name: set(_SETTINGS[name].model_fields) for name in suites if name in _SETTINGS}
    known = set().union(*keys.values()) - {"suite"}
    for key in settings:
        if key not in known:
            raise InvalidInputError(
                f"none of the suites {', '.join(keys)} has a setting '{key}'"
                f"{did_you_mean(key, known)}",
                hint=f"Known settings: {', '.join(sorted(known))}.",
            )
    return [
        make_config(name, {k: v for k, v in settings.items() if k in keys.get(name, ())})
        for name in suites
    ]


def targets_of(source: str | Path, artifact: str | None = None) -> list[str]:
    """Return what can be named to :func:`run_on`: artifact ids, or "torch" for a checkpoint.

    Raises:
        UsageError: If ``artifact`` is not in the bundle; the message lists what is.
    """
    if not _is_bundle(source):
        return [artifact or _CHECKPOINT]
    bundle = open_bundle(source)
    if artifact is not None:
        return [bundle.artifact(artifact).id]
    return [item.id for item in bundle.manifest.artifacts]


def cannot_run(source: str | Path, target: str | None = None) -> str | None:
    """Return why a suite cannot be run on this machine, or ``None`` where it can.

    Core ML predicts on macOS only. Elsewhere :func:`run_on` still works, through the numpy
    evaluator that verifies such artifacts, but a suite takes it minutes instead of seconds.
    """
    if not _is_bundle(source):
        return None
    item = open_bundle(source).artifact(target)
    if item.format == "mlpackage" and sys.platform != "darwin":
        return "Core ML predicts on macOS only"
    package = _PACKAGES[item.format]
    if importlib.util.find_spec(package) is None:
        return f"package '{package}' is not installed"
    return None


def run_on(
    source: str | Path,
    target: str | None,
    config: SuiteConfig,
    *,
    artifact: ArtifactRef | None = None,
    resume_file: Path | None = None,
    threads: int | None = None,
) -> Result:
    """Open a checkpoint or an artifact on this host, and run one suite on it.

    Args:
        source: Bundle directory or zip, checkpoint directory, or "embedded".
        target: Artifact id, target or back end; "torch" or ``None`` for a checkpoint.
        config: Which suite, with its settings.
        artifact: How the result names what ran; from the source where ``None``.
        resume_file: Where the question suites keep answers, so that a run can go on.
        threads: Compute threads; the runtime's own choice where ``None``.

    Raises:
        UsageError: If there is no such artifact, or a setting does not fit it.
        InvalidInputError: If a file is missing or damaged, or there is no tokenizer.
        MissingDependencyError: If the artifact's runtime is not installed.
    """
    from . import run

    open_source = _open_artifact if _is_bundle(source) else _open_checkpoint
    runtime, tokenizer, found = open_source(source, target, threads)
    return run(
        runtime,
        tokenizer,
        config,
        artifact=artifact or found,
        device=_host(),
        resume_file=resume_file,
    )


def summary_line(result: Result) -> str:
    """Return the main figures of a result in one line, or why there are none."""
    metrics = result.metrics
    if metrics.get("suite") == "perplexity":
        if metrics["perplexity"] is None:
            return f"no perplexity ({metrics['reason']})"
        return (
            f"perplexity {metrics['perplexity']:.4g}, {metrics['bits_per_byte']:.3f} bits a byte, "
            f"{metrics['tokens']} tokens"
        )
    name = metrics["dataset"]["name"] if "dataset" in metrics else result.workload.id
    if metrics.get("accuracy") is None:  # a phone has no key and says nothing of one
        reason = metrics.get("reason") or "no answer key was given"
        return f"{name}: {len(result.letters)} answers, no accuracy ({reason})"
    if not {"interval", "n", "chance", "invalid"} <= metrics.keys():
        return f"{name}: {len(result.letters)} answers, an accuracy without its interval"
    low, high = metrics["interval"]
    return (
        f"{name} {metrics['accuracy']:.1%} ({low:.1%} to {high:.1%}, n {metrics['n']}, "
        f"chance {metrics['chance']:.0%})"
        + _unanswered(metrics["invalid"])
        + _over_orders(metrics.get("order"))
    )


def _unanswered(invalid: dict[str, int]) -> str:
    """Say how many questions got no answer, and hence no credit."""
    meaning = {
        "no_letter": "answered without a letter",
        "no_text": "answered with nothing",
        "not_finite": "with logits not finite",
        "several_letters": "answered with several letters",
        "too_long": "longer than the context",
    }
    return "".join(f", {count} {meaning.get(why, why)}" for why, count in sorted(invalid.items()))


def _over_orders(order: dict[str, Any] | None) -> str:
    """Say how steady the answers are where the options were shown in several orders."""
    if order is None or order["consistency"] is None:
        return ""
    mean = "" if order["acc_mean"] is None else f"mean {order['acc_mean']:.1%}, "
    return f"; {order['rotations']} orders: {mean}the same answer to {order['consistency']:.1%}"


def _is_bundle(source: str | Path) -> bool:
    from mobilekit.runtime import is_bundle  # imports numpy, which settings do not need

    return is_bundle(source)


def _open_checkpoint(
    source: str | Path, target: str | None, threads: int | None
) -> tuple[TokenLogits, TextTokenizer, ArtifactRef]:
    from mobilekit import runtime
    from mobilekit.data.tokenizer import load_tokenizer
    from mobilekit.runtime.sources import checkpoint_facts

    facts = checkpoint_facts(source)
    tokenizer = load_tokenizer(facts.path)  # before the weights: the likelier thing to be missing
    opened = runtime.open(facts.path, target, threads=threads)
    digest = facts.hash.removeprefix("sha256:")
    return opened, tokenizer, ArtifactRef(id=_CHECKPOINT, sha256=digest, bytes=facts.bytes)


def _open_artifact(
    source: str | Path, target: str | None, threads: int | None
) -> tuple[TokenLogits, TextTokenizer, ArtifactRef]:
    from mobilekit import runtime

    bundle = open_bundle(source)
    item = bundle.artifact(target)
    tokenizer = _bundle_tokenizer(bundle)
    opened = runtime.open_artifact(bundle, item, threads=threads)
    return opened, tokenizer, _reference(item)


def _bundle_tokenizer(bundle: Bundle) -> TextTokenizer:
    from mobilekit.data.tokenizer import load_tokenizer

    files = [bundle.check(record) for record in bundle.manifest.tokenizer]
    found = [path for path in files if path.name == "tokenizer.json"]
    return load_tokenizer(found[0] if found else bundle.root)


def _reference(item: Artifact) -> ArtifactRef:
    return ArtifactRef(id=item.id, sha256=item.sha256, bytes=item.total_bytes)


def _host() -> dict[str, Any]:
    return {
        "class": f"host-{platform.machine() or 'unknown'}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
