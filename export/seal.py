"""Seal a bundle: copy what belongs to the artifacts, and write the manifest over all of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mobilekit
from mobilekit.core.files import atomic_write_json, sha256_file
from mobilekit.models import checkpoint_hash, describe, licences
from mobilekit.models.families import family_for_class
from mobilekit.schema.manifest import MANIFEST_FILE, Artifact, FileRecord, Manifest
from mobilekit.schema.plan import PLAN_FILE, read_plans

from .backends import BACKENDS
from .backends.base import Backend
from .facts import model_facts
from .job import Job, Outcome

VECTORS_FILE = "vectors/parity.safetensors"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


def seal(
    source: Path,
    bundle: Path,
    context_length: int,
    outcomes: dict[str, tuple[Job, Outcome]],
    recipe: dict[str, Any] | None,
) -> Manifest:
    """Write the manifest of a bundle whose artifacts and vectors are in place."""
    facts = describe(source)
    family = family_for_class(facts["class"])
    plans = read_plans(source / PLAN_FILE) if (source / PLAN_FILE).is_file() else []
    tokenizer = [name for name in _TOKENIZER_FILES if (source / name).is_file()]
    texts = sorted(path.name for path in source.glob("*LICEN[CS]E*") if path.is_file())
    manifest = Manifest(
        task=family.task,
        interface=family.interface,
        model={**facts, **_model_facts(source), "context_length": context_length},
        artifacts=tuple(_artifact(source, bundle, name, *made) for name, made in outcomes.items()),
        tokenizer=tuple(_copy(source, bundle, name, "tokenizer") for name in tokenizer),
        vectors=record(bundle, VECTORS_FILE),
        plans=tuple(plan.to_json() for plan in plans),
        licences=licences(source),
        licence_texts=tuple(_copy(source, bundle, name, "licences") for name in texts),
        recipe=recipe,
        provenance={"checkpoint": checkpoint_hash(source), "mobilekit": mobilekit.__version__},
    )
    atomic_write_json(bundle / MANIFEST_FILE, manifest.to_json())
    return manifest


def record(bundle: Path, name: str) -> FileRecord:
    """Return the record of a file of the bundle."""
    path = bundle / name
    return FileRecord(path=name, bytes=path.stat().st_size, sha256=sha256_file(path))


def _copy(source: Path, bundle: Path, name: str, folder: str) -> FileRecord:
    target = bundle / folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / name, target)
    return record(bundle, f"{folder}/{name}")


def _companions(source: Path, backend: Backend) -> list[str]:
    """Return the tokenizer files that the ecosystem's own tools expect beside the artifact."""
    wanted = _TOKENIZER_FILES if backend.tokenizer_beside else ()
    return [name for name in wanted if (source / name).is_file()]


def _model_facts(source: Path) -> dict[str, Any]:
    """Return what a host must know of the model."""
    known = model_facts(source)
    return {
        "vocab_size": known.vocab_size,
        "hidden_size": known.hidden_size,
        "num_hidden_layers": known.num_hidden_layers,
        "bos_token_id": known.bos_token_id,
        "eos_token_ids": list(known.eos_token_ids),
    }


def _artifact(source: Path, bundle: Path, name: str, job: Job, outcome: Outcome) -> Artifact:
    assert outcome.lowered is not None  # a worker without a result has raised already
    assert outcome.parity is not None
    backend, lowered = BACKENDS.get(job.target), outcome.lowered
    lowering = {
        "seconds": lowered.seconds,
        "peak_rss_bytes": lowered.peak_rss_bytes,
        "cached": outcome.cached,
        "worker_peak_rss_bytes": outcome.peak_rss_bytes,
        "estimated_worker_peak_bytes": job.estimated_peak_bytes,
    }
    return Artifact(
        id=name,
        format=backend.format,
        backend=backend.backend,
        precision=job.precision,
        overrides=dict(job.overrides),
        runtime=lowered.runtime,
        files=tuple(record(bundle, f"{name}/{path}") for path in lowered.files),
        companions=tuple(_copy(source, bundle, f, name) for f in _companions(source, backend)),
        programs=lowered.programs,
        weights=lowered.weights,
        parity=outcome.parity,
        settings={**lowered.settings, "lowering": lowering},
    )
