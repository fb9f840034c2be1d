"""Lower one model of ``decode.py`` in a process of its own; prints seconds and peak memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from decode_models import build
from mobilekit.export.backends import BACKENDS
from mobilekit.export.backends.base import ExportSpec
from mobilekit.export.precision import Precision

from mobilekit.core.memory import peak_rss_bytes
from mobilekit.models.families import family_of


def main() -> None:
    """Write the artifact that the job names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_grad_enabled(False)
    model = build(job["shape"])
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    spec = ExportSpec(Precision(job["precision"]), job["context_length"], eos_token_ids=(0,))
    lowered = BACKENDS.get(job["target"]).lower(model, family_of(model), spec, out)
    answer = {
        "file": str(out / lowered.files[0]),
        "bytes": sum((out / name).stat().st_size for name in lowered.files),
        "seconds": time.monotonic() - started,
        "peak_bytes": peak_rss_bytes(),
        "share_at_precision": lowered.weights.share_at_precision,
    }
    Path(job["record"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
