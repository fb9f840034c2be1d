"""Processor features out of the kernel's own text."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilekit.doctor.machine import cpu_features, look

# lines as the kernel writes them, cut to what matters
X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma avx512f avx512_vnni\n\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd evtstrm aes asimdhp asimddp i8mm\n"


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (X86, ("FMA", "AVX2", "AVX-512", "AVX-512 VNNI")),
        (ARM, ("NEON", "fp16", "dotprod", "i8mm")),
        ("processor\t: 0\n", None),
        (None, None),
    ],
)
def test_features(text: str | None, features: tuple[str, ...] | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu_features(tmp_path) == features


def test_the_cache_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEKIT_CACHE", str(tmp_path / "cache"))
    assert look().cache == {"path": str(tmp_path / "cache"), "bytes": 0, "artifacts": 0}
    entry = tmp_path / "cache" / "lowered" / "abc"
    entry.mkdir(parents=True)
    (entry / "model.onnx").write_bytes(b"12345")
    assert look().cache == {"path": str(tmp_path / "cache"), "bytes": 5, "artifacts": 1}
