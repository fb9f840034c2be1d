"""Two classes in every format and precision, others with every change of the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from mobilekit.export.backends import BACKENDS
from mobilekit.export.lowering import code_hash

import mobilekit as mk
from mobilekit.models.tiny import TINY_MODELS, make_tiny, tiny_family, write_byte_tokenizer

NAMES = [name for name in TINY_MODELS if tiny_family(name).obstacle is None]
FIRST = int(code_hash()[:8], 16) % len(NAMES)
# far enough apart that two variants of a family do not meet
CHOSEN = [NAMES[FIRST], NAMES[(FIRST + len(NAMES) // 2) % len(NAMES)]]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("target", BACKENDS.names())
def test_a_class_exports_to_every_format_and_precision(
    name: str, target: str, tmp_path: Path
) -> None:
    mk.save(make_tiny(name), tmp_path / "checkpoint")
    write_byte_tokenizer(tmp_path / "checkpoint")
    precisions = BACKENDS.get(target).precisions
    manifest = mk.export.build(
        tmp_path / "checkpoint",
        tmp_path / "bundle",
        targets=[target],
        precisions=precisions,
        context_length=48,
    )
    verdicts = {item.precision: item.parity.passed for item in manifest.artifacts}
    assert verdicts == dict.fromkeys(precisions, True)
    shares = {item.precision: item.weights.share_at_precision for item in manifest.artifacts}
    assert shares["fp32"] == 1.0
    assert shares["int8"] > 0.8  # of a tiny model; norms and routers are no small part of it
