"""Bad input on the command line: two lines, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilekit.core import needs
from mobilekit.core.memory import AvailableMemory

from .conftest import Said, edit_json, flip_a_byte, listing, split, write_recipe

Refused = Callable[..., None]
AIMER = ["--method", "aimer"]
ONNX = ["--target", "onnx", "--precision", "fp32", "--context-length", "64", "--quiet"]
TRAIN = ["--set", "objective=[next_token]", "--set", "tokens=1000"]


CHECKPOINTS = {
    "weightless": "has no weights",
    "truncated": "truncated or damaged",
    "pickled": "pickled weights (pytorch_model.bin)",
    "mismatched": "config.json asks for [256, 32]",
    "foreign": "Supported classes: Gemma2ForCausalLM",
    "configless": "has no config.json",
    "nan": "NaN or infinite",
    "greedy": "asks for 99 experts a token, it has 8",
    "choosy": "asks for 0 experts a token, it has 8",
    "absent": "does not exist",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("verb", ["plan", "compress", "export", "evaluate"])
def test_a_bad_checkpoint(verb: str, name: str, shelf: Path, refused: Refused) -> None:
    options = {
        "plan": [*AIMER, "--out", "new"],
        "compress": [*AIMER, "--out", "new", "--json"],
        "export": [*ONNX, "--out", "new", "--json"],
        "evaluate": ["--suite", "perplexity", "--out", "new"],
    }
    refused([verb, shelf / name, *options[verb]], CHECKPOINTS[name])


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("recover", [*TRAIN, "--out", "new"], "does not exist"),
        ("profile", ["--out", "new"], "does not exist"),
        ("verify", [], "does not exist"),
        ("report", [], "does not exist"),
        ("run", [], "does not exist"),
    ],
)
def test_a_path_where_nothing_is(
    verb: str, options: list[str], words: str, refused: Refused
) -> None:
    refused([verb, "absent/there", *options], words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprot"], "Did you mean 'export'?"),
        (["plan", "MOE", "--methd", "aimer"], "--methd"),
        (["plan", "MOE"], "missing option '--method'"),
        (["export", "MOE", "--out", "new", "--context-length", "abc"], "--context-length"),
        (["profile", "MOE", "--repetitions", "0"], "greater than or equal to 1"),
        (["plan", "MOE", "--method", "amer", "--out", "new"], "did you mean 'aimer'?"),
        (["methods", "amer"], "did you mean 'aimer'?"),
        (["plan", "MOE", *AIMER, "--out", "new", "--set", "sparsty=0"], "mean 'sparsity'?"),
        (["plan", "MOE", *AIMER, "--out", "new", "--set", "sparsity"], "expected key=value"),
        (["plan", "MOE", *AIMER, "--out", "new", "--device", "tpu"], "unknown device 'tpu'"),
        (["compress", "MOE", "--out", "new"], "either --method or --plan"),
        (["export", "MOE", "--out", "new", "--target", "onxx"], "did you mean 'onnx'?"),
        (["export", "MOE", "--out", "new", "--precision", "int9"], "It has: fp32"),
        (["export", "MOE", "--out", "new", "--context-length", "4096"], "of 8 to 128"),
        (["evaluate", "MOE", "--suite", "perplexty"], "did you mean 'perplexity'?"),
        (["evaluate", "MOE", "--set", "max_token=5"], "did you mean 'max_tokens'?"),
        (["export", "MOE", "--out", "new", "--context-length", "0"], "of 8 to 128: --context-"),
        (["evaluate", "MOE", "--artifact", "onnx"], "is a checkpoint, not a bundle"),
        (["profile", "MOE", "--device", "hst"], "did you mean 'host'?"),
        (["profile", "MOE", "--workload", "zz9"], "unknown workload 'zz9'"),
        (["profile", "MOE", "--workload", "pp129"], "needs 129 positions"),
        (["recover", "MOE", "--out", "new"], "needs a --teacher"),
        (["report", "MOE"], "is not a run directory"),
        (["verify", "MOE"], "is not a bundle"),
    ],
)
def test_an_unknown_name_or_a_wrong_option(
    arguments: list[str], words: str, shelf: Path, refused: Refused
) -> None:
    refused([str(shelf / "moe") if a == "MOE" else a for a in arguments], words)


def test_no_command_shows_the_help(mobilekit: Callable[..., Said]) -> None:
    said = mobilekit()
    assert said.code == 2
    assert said.out == ""
    assert "Commands:" in said.lines


def test_a_device_that_is_not_there(shelf: Path, refused: Refused) -> None:
    arguments = ["plan", shelf / "moe", *AIMER, "--out", "new", "--device", "cuda:99"]
    refused(arguments, "cuda:99", code=3)


@pytest.mark.parametrize("sparsity", ["1", "1.5", "-0.1", ".nan", "abc"])
@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_a_sparsity_outside_of_its_range(
    verb: str, sparsity: str, shelf: Path, refused: Refused
) -> None:
    arguments = [verb, shelf / "moe", *AIMER, "--set", f"sparsity={sparsity}", "--out", "new"]
    refused([*arguments, "--json"], "'sparsity' is ")


@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_aimer_on_what_it_cannot_prune(verb: str, shelf: Path, refused: Refused) -> None:
    refused([verb, shelf / "dense", *AIMER, "--out", "new"], "has no experts", "qwen3_moe")
    few = ["--set", "sparsity=0.9", "--out", "new"]
    refused([verb, shelf / "moe", *AIMER, *few], "fewer than the router's top-2", "at most 0.75")


@pytest.fixture(scope="session")
def plan(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mobilekit import compress
    from mobilekit.models import load

    made = compress.plan(load(shelf / "moe", device="cpu"), "aimer", sparsity=0.25)
    return json.loads(json.dumps([made.to_json()]))


def other_parent(plans: Any) -> None:
    plans[0]["parent"] = "sha256:" + "0" * 64


def illegal_index(plans: Any) -> None:
    plans[0]["edits"][0]["indices"][-1] = 99


def too_few(plans: Any) -> None:
    plans[0]["edits"][0]["indices"] = [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_parent, "was made for checkpoint sha256:000000000000"),
        (illegal_index, "keeps expert 99 of layer 0, which has 8"),
        (too_few, "Keep at least 2"),
    ],
)
def test_a_plan_that_does_not_fit(
    change: Callable[[Any], None],
    words: str,
    plan: Any,
    shelf: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    edit_json(tmp_path / "plan.json", change)
    refused(["compress", shelf / "moe", "--plan", "plan.json", "--out", "new"], words)


def test_a_plan_that_is_no_plan(shelf: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "plan.json").write_text("[1, ")
    arguments = ["compress", shelf / "moe", "--out", "new", "--plan"]
    refused([*arguments, "plan.json"], "not valid JSON")
    refused([*arguments, "absent.json"], "does not exist")
    refused([*arguments, tmp_path], "is a directory")


@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_without_a_tokenizer_there_is_a_warning(
    verb: str, shelf: Path, mobilekit: Callable[..., Said]
) -> None:
    said = mobilekit(verb, shelf / "untokenized", *AIMER, "--out", "new", "--json")
    assert said.code == 0
    assert said.lines == ()
    assert len(said.warnings) == 1
    assert "has no tokenizer" in said.warnings[0]
    json.loads(said.out)


@pytest.mark.parametrize("name", ["untokenized", "mistokenized"])
def test_what_needs_a_tokenizer(name: str, shelf: Path, tmp_path: Path, refused: Refused) -> None:
    path = shelf / name
    refused(["export", path, *ONNX, "--out", "new"], "tokenizer")
    refused(["evaluate", path, "--suite", "perplexity"], "tokenizer.json")
    refused(["recover", path, *TRAIN, "--out", "new"], "tokenizer.json")


def test_a_run_with_export_needs_a_tokenizer(shelf: Path, tmp_path: Path, refused: Refused) -> None:
    export = {"targets": ["onnx"], "precisions": ["fp32"], "context_length": 64}
    source = {"source": str(shelf / "untokenized")}
    write_recipe(tmp_path / "recipe.yaml", model=source, export=export)
    refused(["run", "recipe.yaml", "--out", "new", "--json"], "has no tokenizer")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: [1\n b: }\n", "is not a YAML recipe"),
        (bytes(range(256)), "is not a YAML recipe"),
        (b"x: &a [1]\ny: *a\n", "aliases are not allowed"),
        (b"- 1\n", "expected a mapping"),
        (b"", "recipe.yaml is empty"),
        (b"# " + b"x" * (10 << 20) + b"\nversion: 1\n", "at most 1048576"),
        (b"version: 2\n", "Update MobileKit"),
        (b"version: 1\nmodle: {}\n", "did you mean 'model'?"),
        (b"version: 1\ncompress: [{method: amer}]\n", "did you mean 'aimer'?"),
        (b"version: 1\ncompress: [{method: aimer, sparsty: 0}]\n", "did you mean 'sparsity'?"),
        (b"version: 1\ncompress: [{method: aimer, sparsity: 1}]\n", "'sparsity' is 1"),
        (b"version: 1\nexport: {targets: [onxx]}\n", "did you mean 'onnx'?"),
        (b"version: 1\nexport: {targets: [onnx], precisions: [int9]}\n", "no precision 'int9'"),
        (b"version: 1\nexport: {context_length: 64}\nprofile: {workloads: [pp65]}\n", "pp65"),
        (b"version: 1\nevaluate: [{suite: perplexty}]\n", "perplexty"),
        (b"version: 1\nprofile: {devices: [hst]}\n", "hst"),
        (b"version: 1\nprofile: {workloads: [zz]}\n", "zz"),
        (b"version: 1\nmodel: {source: absent/there}\n", "does not exist"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_a_bad_recipe(text: bytes, words: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    refused(["run", "recipe.yaml", "--out", "new", "--json"], words)
    refused(["run", tmp_path], "is a directory")


@pytest.mark.parametrize(
    ("checkpoint", "content", "words"),
    [
        ("truncated", {}, "truncated or damaged"),
        ("configless", {}, "has no config.json"),
        ("dense", {"compress": [{"method": "aimer"}]}, "has no experts"),
        ("moe", {"compress": [{"method": "aimer", "sparsity": 0.9}]}, "router's top-2"),
        ("nan", {"compress": [{"method": "aimer"}]}, "NaN or infinite"),
        ("moe", {"export": {"targets": ["onnx"], "context_length": 4096}}, "of 8 to 128"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_leaves_no_run(
    checkpoint: str,
    content: dict[str, Any],
    words: str,
    shelf: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    write_recipe(tmp_path / "recipe.yaml", model={"source": str(shelf / checkpoint)}, **content)
    refused(["run", "recipe.yaml", "--out", "new", "--quiet", "--json"], words)


WRITERS: dict[str, list[str]] = {
    "plan": ["MOE", *AIMER],
    "compress": ["MOE", *AIMER],
    "recover": ["MOE", *TRAIN],
    "export": ["MOE", *ONNX],
    "profile": ["MOE", "--workload", "pp8", "--repetitions", "1"],
    "evaluate": ["MOE", "--suite", "perplexity"],
    "run": ["recipe.yaml", "--quiet"],
}


@pytest.fixture
def writer(shelf: Path, tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Return the arguments of a command that would write a directory."""
    steps = [{"method": "aimer"}]
    recipe = {"model": {"source": str(shelf / "moe")}, "compress": steps}
    write_recipe(tmp_path / "recipe.yaml", **recipe)

    def arguments(verb: str, out: str) -> list[str]:
        given = [str(shelf / "moe") if a == "MOE" else a for a in WRITERS[verb]]
        return [verb, *given, "--out", out]

    return arguments


@pytest.mark.parametrize("verb", WRITERS)
def test_an_output_that_cannot_be(
    verb: str, writer: Callable[[str, str], list[str]], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    refused(writer(verb, "file"), "is a file")
    refused(writer(verb, "file/new"), "is a file")
    refused(writer(verb, "full"), "is not empty")
    assert (tmp_path / "full" / "kept").read_text() == "mine"


def test_init_under_a_file(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("mine")
    refused(["init", "file/recipe.yaml"], "is a file")
    refused(["init", "file"], "exists", "--force")


def test_init_on_a_directory_is_not_told_to_use_force(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "folder").mkdir()
    for force in ([], ["--force"]):
        refused(["init", "folder", *force], "is a directory", "init folder/recipe.yaml")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no procfs here")
@pytest.mark.parametrize("verb", WRITERS)
def test_a_place_that_only_looks_writable_is_refused_before_the_work(
    verb: str,
    writer: Callable[[str, str], list[str]],
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def worked(*_: Any, **__: Any) -> Any:
        raise AssertionError("it must be refused before any work")

    monkeypatch.setattr("mobilekit.models.inspect.resolve", worked)
    monkeypatch.setattr("mobilekit.models.resolve", worked)
    refused(writer(verb, "/proc/o"), "cannot write /proc/o", "a place that you may write to")
    refused(writer(verb, "/proc/o/p"), "cannot write /proc/o/p")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no procfs here")
def test_init_where_nothing_can_be_is_not_told_of_an_out(refused: Refused) -> None:
    refused(["init", "/proc/o"], "cannot write /proc/o", "a place that you may write to")
    refused(["init", "/proc/o/recipe.yaml"], "cannot write /proc/o/recipe.yaml")


@pytest.mark.parametrize("verb", ["compress", "export", "run"])
def test_a_full_disk(
    verb: str, writer: Callable[[str, str], list[str]], tiny_disk: Path, refused: Refused
) -> None:
    know_better = [] if verb == "compress" else ["--ignore-estimates"]
    refused([*writer(verb, "disk/new"), *know_better], "o space left on")


@pytest.mark.parametrize("verb", ["export", "run"])
def test_a_disk_that_is_estimated_too_small(
    verb: str, writer: Callable[[str, str], list[str]], tiny_disk: Path, refused: Refused
) -> None:
    refused(
        writer(verb, "disk/new"), "an estimated", "of disk", "are free at", "--ignore-estimates"
    )


def test_the_plan_comes_before_the_work(shelf: Path, mobilekit: Callable[..., Said]) -> None:
    """A weight that is no number is found when the work begins; the plan stands before that."""
    loud = [option for option in ONNX if option != "--quiet"]
    said = mobilekit("export", shelf / "nan", *loud, "--out", "new")
    assert said.code == 2
    headline, available, artifact, whole, *error = said.lines
    assert headline.startswith("Plan   0.")
    assert "1 artifact, 1 at a time" in headline
    assert "of memory; free disk: " in available
    for line, step in ((artifact, "onnx fp32"), (whole, "export")):
        assert line.strip().startswith(step)
        assert "estimated peak" in line
        assert "estimated disk" in line
    assert "NaN or infinite" in error[0]


@pytest.mark.parametrize("verb", ["export", "run"])
def test_memory_that_is_estimated_too_small(
    verb: str,
    writer: Callable[[str, str], list[str]],
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited = AvailableMemory(300_000_000, 400_000_000, "/sys/fs/cgroup/memory.max")
    monkeypatch.setattr(needs, "available_memory", lambda: limited)
    words = ("GB of memory, but 0.3 GB are available (/sys/fs/cgroup/memory.max)", "an estimated")
    refused(writer(verb, "new"), *words)


@pytest.mark.parametrize("verb", WRITERS)
def test_a_read_only_disk(
    verb: str, writer: Callable[[str, str], list[str]], read_only_disk: Path, refused: Refused
) -> None:
    refused(writer(verb, "disk/new"), "cannot write disk/new")


def test_init_on_a_read_only_disk(read_only_disk: Path, refused: Refused) -> None:
    refused(["init", "disk/recipe.yaml"], "cannot write disk/recipe.yaml")


PROFILE = ["--workload", "pp8", "--repetitions", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.onnx", "genai_config.json"])
def test_a_bundle_with_a_changed_byte(file: str, bundle: Path, refused: Refused) -> None:
    flip_a_byte(bundle / "onnx-cpu-fp32" / file)
    words = f"onnx-cpu-fp32/{file} has changed"
    refused(["verify", bundle, "--json"], words, code=1)
    refused(["profile", bundle, *PROFILE, "--out", "new"], words)
    refused(["evaluate", bundle, "--out", "new"], words)


@pytest.mark.slow
def test_a_bundle_with_a_changed_tokenizer(bundle: Path, refused: Refused) -> None:
    flip_a_byte(bundle / "tokenizer" / "tokenizer.json")
    refused(["verify", bundle], "tokenizer/tokenizer.json has changed", code=1)
    refused(["evaluate", bundle], "tokenizer/tokenizer.json has changed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["artifacts"][0]["files"][0].update(path="../model.onnx"), "leaves the"),
        (lambda m: m["tokenizer"][0].update(path="/etc/hostname"), "leaves the directory"),
        (lambda m: m.update(schema="mobilekit.bundle/2"), "Update MobileKit"),
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
    ],
    ids=["parent", "absolute", "newer", "unknown key"],
)
def test_a_bundle_with_a_bad_manifest(
    change: Callable[[Any], object], words: str, bundle: Path, refused: Refused
) -> None:
    edit_json(bundle / "manifest.json", change)
    refused(["verify", bundle, "--json"], words)
    refused(["profile", bundle, *PROFILE], words)
    refused(["evaluate", bundle], words)


@pytest.mark.slow
def test_a_damaged_zip_of_a_bundle(bundle: Path, tmp_path: Path, refused: Refused) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle))
    os.truncate(archive, archive.stat().st_size // 2)
    refused(["verify", archive], "bundle")
    (bundle / "manifest.json").unlink()
    refused(["verify", bundle], "is not a bundle")


@pytest.mark.slow
def test_another_checkpoint_cannot_explain_a_bundle(
    bundle: Path, shelf: Path, refused: Refused
) -> None:
    refused(["verify", bundle, "--model", shelf / "moe"], "is not the checkpoint that")


@pytest.mark.slow
def test_more_than_the_exported_context_holds(
    bundle: Path, refused: Refused, mobilekit: Callable[..., Said]
) -> None:
    refused(["profile", bundle, "--workload", "pp65"], "needs 65 positions", "at most 64")
    refused(["profile", bundle, "--workload", "pp60+tg5"], "needs 65 positions")
    window = ["--suite", "perplexity", "--set", "window=99"]
    refused(["evaluate", bundle, *window], "a window of 99 tokens")
    refused(["evaluate", bundle, "--artifact", "onnx-cpu-fp23"], "did you mean 'onnx-cpu-fp32'?")
    refused(["verify", bundle, "--artifact", "onnx-cpu-fp23"], "did you mean 'onnx-cpu-fp32'?")
    refused(["verify", bundle, "--model", "absent/there"], "does not exist")
    said = mobilekit("evaluate", bundle, "--suite", "mobile_mmlu")
    assert "longer than the context" in said.out


def in_a_process(*arguments: str | Path, cwd: Path) -> Said:
    command = [sys.executable, "-m", "mobilekit", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return split(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "nan", *AIMER, "--out", "NEW", "--json"], "NaN or infinite"),
        (["export", "truncated", *ONNX, "--out", "NEW"], "truncated or damaged"),
        (["exprot"], "Did you mean 'export'?"),
    ],
)
def test_a_fresh_process_says_no_more(
    arguments: list[str], words: str, shelf: Path, tmp_path: Path
) -> None:
    new = str(tmp_path / "new")
    given = [new if argument == "NEW" else argument for argument in arguments]
    in_a_process(*given, cwd=shelf).check_refusal(2, words)
    assert listing(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_stopped_run_cleans_up_and_ends_with_128_and_the_signal(
    number: signal.Signals, said: str, shelf: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        model={"source": str(shelf / "dense")},
        export={"targets": ["onnx"], "precisions": ["fp32"], "context_length": 32},
    )
    command = [sys.executable, "-m", "mobilekit", "run", str(recipe), "--out", str(tmp_path / "r")]

    def interruptible() -> None:  # a background job of a shell ignores Ctrl-C, and so this
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Plan ")
        process.send_signal(number)
        rest = process.stderr.read().splitlines()
    assert process.returncode == 128 + number
    *plan, first, second = rest
    assert [first, second] == [f"error: {said}", "Finished steps are kept: go on with --resume."]
    assert not [line for line in plan if line.startswith(("error", "Traceback"))]
    assert not list((tmp_path / "r").glob(".bundle.*"))
    assert not (tmp_path / "r" / "bundle").exists()
