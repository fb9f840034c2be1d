"""Programs of ours in ExecuTorch's own hands: its LLM runner, and C++ without any Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mobilekit.export.backends import BACKENDS
from mobilekit.export.backends.base import ExportSpec
from mobilekit.export.precision import Precision
from tokenizers import Tokenizer

from mobilekit.models import load
from mobilekit.models.embedded import __file__ as embedded
from mobilekit.models.families import family_of
from mobilekit.runtime.executorch import ExecutorchRuntime
from mobilekit.runtime.generate import greedy

pytestmark = pytest.mark.slow  # lowers the embedded model

T = 128
PROMPT = "The function returns a"
NEW_TOKENS = 24


@dataclass(frozen=True)
class Continued:
    """A program, and how our own runtime continues the prompt with it."""

    pte: Path
    tokenizer: Path
    prompt: list[int]
    tokens: list[int]

    @property
    def text(self) -> str:
        return str(Tokenizer.from_file(str(self.tokenizer)).decode(self.tokens))


@pytest.fixture(scope="module", params=["fp32", "int4"])
def continued(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Continued:
    model: Any = load("embedded", device="cpu", dtype="float32")
    spec = ExportSpec(Precision(request.param), T, eos_token_ids=(int(model.config.eos_token_id),))
    out = tmp_path_factory.mktemp(request.param)
    pte = out / BACKENDS.get("executorch").lower(model, family_of(model), spec, out).files[0]
    (tokenizer,) = Path(embedded).parent.glob("*/tokenizer.json")
    prompt = Tokenizer.from_file(str(tokenizer)).encode(PROMPT).ids
    runtime = ExecutorchRuntime(pte, context_length=T, vocab_size=model.config.vocab_size)
    return Continued(pte, tokenizer, prompt, list(map(int, greedy(runtime, prompt, NEW_TOKENS))))


_STOCK_RUNNER = """
import json, sys
import torch
import executorch.kernels.quantized
import executorch.extension.llm.custom_ops.custom_ops
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
model, tokenizer, prompt, count, out = sys.argv[1:]
pieces = []
runner = TextLLMRunner(model, tokenizer)
config = GenerationConfig(echo=False, max_new_tokens=int(count), temperature=0.0)
runner.generate(prompt, config, token_callback=pieces.append)
json.dump("".join(pieces), open(out, "w"))
"""


def test_the_stock_runner_generates_the_same_text(continued: Continued, tmp_path: Path) -> None:
    """It reads the metadata methods, tokenizes by tokenizer.json and continues alike."""
    out = tmp_path / "out.json"
    options = [continued.pte, continued.tokenizer, PROMPT, NEW_TOKENS, out]
    command = [sys.executable, "-c", _STOCK_RUNNER, *map(str, options)]
    subprocess.run(command, check=True, capture_output=True)
    told = json.loads(out.read_text())
    assert len(told) > 20
    assert told == continued.text


@pytest.fixture(scope="module")
def run_pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run_pte.cpp``, built with what the wheel ships.

    The wheel's LLM kernels are in a library that is also a torch extension. It asks for the
    Python bindings, of which it uses nothing; an empty library of that name answers.
    """
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build the C++ runner with")
    root, torch = (Path(_folder(name)) for name in ("executorch", "torch"))
    out = tmp_path_factory.mktemp("run_pte")
    (bindings,) = (root / "extension/pybindings").glob("_C.*.so")
    name = bindings.name
    empty = ["-shared", "-fPIC", "-x", "c++", "/dev/null", f"-Wl,-soname,{name}"]
    subprocess.run(["g++", *empty, "-o", str(out / name)], check=True)
    folders = [out, root / "lib", root / "extension/llm/custom_ops", torch / "lib"]
    kernels = ["kernels_optimized", "kernels_quantized", "backend_xnnpack", "threadpool"]
    headers = [root / "include", root / "include/executorch/runtime/core/portable_type/c10"]
    command = [
        *("g++", "-std=c++20", "-O1", "-w", str(Path(__file__).with_name("run_pte.cpp"))),
        *(f"-I{folder}" for folder in headers),
        "-DC10_USING_CUSTOM_GENERATED_MACROS",
        *(f"-L{folder}" for folder in folders),
        *("-Wl,--no-as-needed", f"-l:{name}", "-lexecutorch"),
        *(f"-lexecutorch_{kernel}" for kernel in kernels),
        "-l:libcustom_ops_aot_lib.so",
        *(f"-Wl,-rpath,{folder},-rpath-link,{folder}" for folder in folders),
        *("-o", str(out / "run_pte")),
    ]
    subprocess.run(command, check=True)
    return out / "run_pte"


def _folder(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(iter(spec.submodule_search_locations))


def test_cpp_without_python_generates_the_same_tokens(continued: Continued, run_pte: Path) -> None:
    command = [run_pte, continued.pte, NEW_TOKENS, *continued.prompt]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True)
    assert [int(line) for line in done.stdout.split()] == continued.tokens
