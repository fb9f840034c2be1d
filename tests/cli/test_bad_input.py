"""Bad arguments and checkpoints: two lines, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import AIMER, ONNX, TRAIN, Refused, Said, listing, split

CHECKPOINTS = {
    "weightless": "has no weights",
    "truncated": "truncated or damaged",
    "pickled": "pickled weights (pytorch_model.bin)",
    "mismatched": "config.json asks for [256, 32]",
    "foreign": "Supported classes: DeepseekV2ForCausalLM",
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
        (["export", "MOE", "--out", "new", "--precision", "int9"], "Known precisions: fp32"),
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


@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_calibration_text_that_cannot_be_used(
    verb: str, shelf: Path, tmp_path: Path, refused: Refused
) -> None:
    ean = [*AIMER, "--set", "variant=ean", "--out", "new"]
    refused([verb, shelf / "untokenized", *ean], "has no tokenizer", "Copy the tokenizer files")
    refused([verb, shelf / "moe", *ean, "--set", "calibration_data=absent.txt"], "does not exist")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    refused([verb, shelf / "moe", *ean, "--set", "calibration_data=binary.txt"], "is not UTF-8")
    (tmp_path / "short.txt").write_text("a few words")
    whole = ["--set", "calibration_length=128", "--quiet"]
    short = [*ean, "--set", "calibration_data=short.txt", *whole]
    refused([verb, shelf / "moe", *short], "holds 11 tokens, a window needs 128")
    long = [*ean, "--set", "calibration_length=4096"]
    refused([verb, shelf / "moe", *long], "sequences of 4096 tokens", "calibration_length")
    unused = [*AIMER, "--set", "calibration_tokens=9", "--out", "new"]
    refused([verb, shelf / "moe", *unused], "has no effect with variant aimer", "frequency")


@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_a_variant_with_data(
    verb: str, shelf: Path, tmp_path: Path, mobilekit: Callable[..., Said]
) -> None:
    (tmp_path / "mine.txt").write_text("text like what the model is for, over and over. " * 30)
    text = ["--set", "calibration_data=mine.txt", "--set", "calibration_tokens=512"]
    length = ["--set", "calibration_length=64", "--set", "variant=reap"]
    said = mobilekit(verb, shelf / "moe", *AIMER, *text, *length, "--out", "new", "--quiet")
    assert said.code == 0, said
    assert said.lines == ()
    plan = json.loads((tmp_path / "new" / "plan.json").read_text())[0]
    assert plan["scores"]["calibration"]["name"] == "mine.txt"
    assert plan["scores"]["calibration"]["tokens"] == 512


def test_the_note_is_part_of_the_plan_and_no_warning(
    shelf: Path, mobilekit: Callable[..., Said]
) -> None:
    said = mobilekit("plan", shelf / "moe", *AIMER, "--out", "new", "--quiet")
    assert said.warnings == ()
    assert said.out.count("Note: for a model this small, a variant that looks at text") == 1


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
