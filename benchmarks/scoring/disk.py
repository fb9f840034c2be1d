"""Planning and cutting from disk, against reading and copying the same files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mobilekit.core import console

_BLOCK = 8 << 20
# hidden size, intermediate size, experts of Qwen3-30B-A3B; a layer of it is 1.2 GB in bf16
_HIDDEN, _INNER, _EXPERTS = 2048, 768, 128


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write a random Qwen3-MoE of at least that size, a shard a layer; return its bytes."""
    from safetensors.torch import save_file
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    layers = -(-int(gigabytes * 1e9) // (_EXPERTS * 3 * _INNER * _HIDDEN * 2))
    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=_HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=_EXPERTS,
        num_experts_per_tok=8,
        moe_intermediate_size=_INNER,
        architectures=["Qwen3MoeForCausalLM"],
        dtype="bfloat16",
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    from mobilekit.models.stored import stored_specs

    with torch.device("meta"):
        specs = stored_specs(Qwen3MoeForCausalLM(config))
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, spec in specs.items():
        layer = name.split("layers.")[1].split(".")[0] if "layers." in name else "rest"
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = spec.shape
    weight_map, size = {}, 0
    with console.progress(len(shards), "writing a checkpoint") as bar:
        for file, shapes in shards.items():
            tensors = {n: (torch.randn(s) * 0.02).to(torch.bfloat16) for n, s in shapes.items()}
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shapes, file))
            size += sum(tensor.nbytes for tensor in tensors.values())
            bar.advance(1, file)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return size


def measure(checkpoint: Path, out: Path, rounds: int) -> dict[str, Any]:
    """Return seconds and memory of planning, beside those of reading; the page cache is dropped.

    ``anonymous_bytes`` is the most that this process held above what it held before, sampled.
    """
    from mobilekit.compress.stored import compress_stored, plan_stored

    files = sorted(checkpoint.glob("*.safetensors"))
    seconds: dict[str, list[float]] = {}
    anonymous: list[int] = []
    settings: dict[str, Any] = {"sparsity": 0.5}
    for number in range(rounds):
        os.environ["MOBILEKIT_CACHE"] = str(out.parent / f"cache-{number}")  # nothing read before
        for name, run in (
            ("read", lambda: _read_all(files, 1)),
            ("plan", lambda: plan_stored(checkpoint, "aimer", **settings)),
            ("read side by side", lambda: _read_all(files, os.cpu_count() or 1)),
            ("read and hash side by side", lambda: _hash_all(files, os.cpu_count() or 1)),
        ):
            _forget(files)
            with _sampled() as peak:
                start = time.perf_counter()
                run()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
            if name == "plan":
                anonymous.append(peak())
    _forget(files)
    with _sampled() as peak:
        start = time.perf_counter()
        compress_stored(checkpoint, out, method="aimer", **settings)
        cutting = time.perf_counter() - start
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shutil.rmtree(out)
    size = sum(file.stat().st_size for file in files)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min(middle["read"], middle["read side by side"])
    return {
        "bytes": size,
        "shards": len(files),
        "rounds": rounds,
        "seconds": seconds,
        "median_seconds": middle,
        "gb_per_s": {name: size / 1e9 / value for name, value in middle.items()},
        "plan_over_fastest_read": middle["plan"] / fastest,
        "anonymous_bytes": max(anonymous),
        "compress": {"seconds": cutting, "written_bytes": written, "anonymous_bytes": peak()},
    }


def _read_all(files: list[Path], threads: int) -> None:
    def read(file: Path) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, files))


def _hash_all(files: list[Path], threads: int) -> None:
    """SHA-256 of the files: what any tool that checks them has to do."""

    def digest(file: Path) -> str:
        with file.open("rb", buffering=0) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(digest, files))


def _forget(files: list[Path]) -> None:
    """Drop the files from the page cache; what was just written goes to the disk first."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _sampled() -> Iterator[Callable[[], int]]:
    """Sample the anonymous memory of this process; yield what gives the growth at its peak."""
    before, most, done = _anonymous(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], _anonymous())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: max(0, most[0] - before)
    finally:
        done.set()
        thread.join()


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much anonymous memory a process has")
