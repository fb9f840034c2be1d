"""Our side of ``peers_export.py``: a bundle of one artifact, run through ``mobilekit.runtime``."""

from __future__ import annotations

from pathlib import Path

import side

import mobilekit as mk
from mobilekit import runtime
from mobilekit.schema.bundle import open_bundle


class Ours:
    """One artifact by ``mk.export.build``, as a user has it."""

    distributions = ("mobilekit", "transformers", "torch", "executorch", "onnxruntime")

    def make(self, job: side.Job) -> list[Path]:
        """Write a bundle and return the artifact's files, without tokenizer copies."""
        mk.export.build(
            job["checkpoint"],
            job["out"],
            targets=[job["target"]],
            precisions=[job["precision"]],
            context_length=job["context_length"],
        )
        bundle = open_bundle(job["out"])
        artifact = bundle.artifact(None)
        return [Path(job["out"]) / file.path for file in artifact.files]

    def open(self, job: side.Job) -> side.Runner:
        """Open the bundle as a user does."""
        return runtime.open(job["out"], threads=job["threads"])


if __name__ == "__main__":
    side.main(Ours())
