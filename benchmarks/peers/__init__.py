"""Other projects' tools, each in an environment of its own, made once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobilekit.core import console
from mobilekit.models import embedded_path

GENAI = "onnxruntime-genai==0.18.*"
_OFFLINE = "hf_token=false"


class NotInstalled(Exception):
    """A peer's packages do not install here; the message is pip's own."""


def surroundings(*, is_ours: bool) -> dict[str, str]:
    """Return the environment of a process: our packages are not for a peer's Python."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path)} if is_ours else kept


def environment(work: Path, name: str, packages: list[str]) -> Path:
    """Return the Python of a virtual environment that has ``packages``.

    Raises:
        NotInstalled: If pip cannot install them.
    """
    folder = work / f"env-{name}"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        console.status(f"making an environment for {name} ({', '.join(packages)}) …")
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise NotInstalled((errors or ["pip failed"])[0])
        (folder / "ready").touch()
    return python


def genai_graph(work: Path, name: str, model: Callable[[], Any]) -> Path:
    """Return the int4 graph that onnxruntime-genai's builder makes of a model.

    The builder leans on torch and transformers as they are here, so only the package itself goes
    into a folder of its own.
    """
    out = work / f"{name}-genai"
    graph = out / "model.onnx"
    if graph.is_file():
        return graph
    folder = work / "genai"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), GENAI], check=True)
    checkpoint = work / f"{name}-checkpoint"
    if not checkpoint.is_dir():
        model().bfloat16().save_pretrained(checkpoint)
        for file in embedded_path().glob("tokenizer*.json"):  # it will not finish without one
            shutil.copy(file, checkpoint)
    console.status("running onnxruntime-genai's builder …")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    places = ["-i", str(checkpoint), "-o", str(out), "-c", str(work / "genai-cache")]
    options = ["int4_block_size=32", "int4_accuracy_level=4", "int4_is_symmetric=true"]
    with (work / "genai.log").open("w") as log:
        subprocess.run(
            [*command, *places, "-p", "int4", "-e", "cpu", "--extra_options", *options, _OFFLINE],
            check=True,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )
    return graph
