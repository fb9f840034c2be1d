"""``mobilekit evaluate``: quality of a checkpoint, of the artifact that ships, or of a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Answer, command, parse_settings

if TYPE_CHECKING:
    from mobilekit.schema.result import Result

EPILOG = (
    "Examples: mobilekit evaluate embedded --suite perplexity   ·   "
    "mobilekit evaluate runs/demo/bundle --artifact onnx-cpu-int8 --suite mobile_mmlu   ·   "
    "mobilekit evaluate result-from-phone.json --set key=KEY.csv"
)


_Source = Annotated[
    str | None,
    typer.Argument(help="Bundle, checkpoint directory, cached hub id, 'embedded', or a result."),
]
_Suites = Annotated[
    list[str] | None, typer.Option(help="perplexity or mobile_mmlu; both by default.")
]
_Artifact = Annotated[
    str | None, typer.Option(help="Id of a bundle's artifact; all that run here by default.")
]
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A suite setting.")
]
_Out = Annotated[Path | None, typer.Option(help="Directory to write the results (JSON) into.")]
_Against = Annotated[
    Path | None, typer.Option(help="Result (JSON) to compare with, on the same questions.")
]
_Submission = Annotated[
    Path | None, typer.Option(help="Directory for the leaderboard's CSV of letters.")
]
_Answers = Annotated[
    Path | None, typer.Option(help="Directory of answers; an interrupted run goes on there.")
]
_Task = Annotated[
    Path | None,
    typer.Option(help="Write lm-eval tasks there instead; they hold your questions' text."),
]


@command
def main(
    path: _Source = None,
    suite: _Suites = None,
    artifact: _Artifact = None,
    setting: _Settings = None,
    out: _Out = None,
    against: _Against = None,
    submission: _Submission = None,
    answers: _Answers = None,
    lm_eval_task: _Task = None,
) -> Answer:
    """Score a checkpoint, an artifact or a device's result.

    Perplexity on held-out text, and four-option questions by letter or by text.
    """
    from mobilekit import evaluate
    from mobilekit.core.errors import UsageError
    from mobilekit.core.files import check_target, check_writable

    settings = parse_settings(setting or [])
    if lm_eval_task is not None:
        return _write_task(settings, lm_eval_task)
    if path is None:
        raise UsageError("nothing to evaluate was given", hint="Give a bundle or a checkpoint.")
    if out is not None:
        check_target(out)
    if submission is not None:
        check_writable(submission, submission)
    other = None if against is None else evaluate.read_result(against)
    if Path(path).suffix == ".json":
        results = [_scored(path, settings)]
    else:
        results = _run(path, suite, artifact, settings, answers)
    files = [] if out is None else _written(results, out)
    files += [] if submission is None else _submitted(results, submission, path)
    compared = [] if other is None else _compared(results, other, settings, out)
    return _answer(results, compared, files)


def _write_task(settings: dict[str, Any], out: Path) -> Answer:
    from mobilekit import evaluate

    config = evaluate.MobileMMLUConfig.parse(settings, "suite mobile_mmlu")
    group = evaluate.write_lm_eval_task(config, out)
    command = f"lm-eval run --model hf --include_path {out} --tasks {group}"
    lines = [
        f"Task {group} in {out}; its files hold the text of your questions.",
        f"Run: {command}",
    ]
    return Answer({"group": group, "path": str(out)}, lines=lines)


def _run(
    path: str,
    suites: Sequence[str] | None,
    artifact: str | None,
    settings: dict[str, Any],
    answers: Path | None,
) -> list[Result]:
    from mobilekit import evaluate
    from mobilekit.core import console

    configs = evaluate.make_configs(suites or evaluate.SUITES.names(), settings)
    results = []
    for name in evaluate.targets_of(path, artifact):
        if (reason := evaluate.cannot_run(path, name)) is not None:
            console.warn(f"{name} is not evaluated: {reason}")
            continue
        for config in configs:
            log = None if answers is None else answers / f"{config.suite}-{name}.answers.jsonl"
            results.append(evaluate.run_on(path, name, config, resume_file=log))
    return results


def _scored(path: str, settings: dict[str, Any]) -> Result:
    """Read a result, and score its letters where a key is given."""
    from mobilekit import evaluate
    from mobilekit.core.errors import UsageError

    if unknown := set(settings) - {"key", "data"}:
        raise UsageError(
            f"a result was given, and setting '{sorted(unknown)[0]}' is for running a model",
            hint="With a result: --set key=KEY.csv, and --set data=DIR for fields.",
        )
    result = evaluate.read_result(path)
    if not result.letters:
        raise UsageError(
            f"{path} has no letters: it is of workload {result.workload.id}",
            hint="Give a result of the suite mobile_mmlu.",
        )
    if "key" not in settings:
        return result
    data = settings.get("data")
    return evaluate.rescore(result, str(settings["key"]), data=None if data is None else str(data))


def _written(results: Sequence[Result], out: Path) -> list[Path]:
    from mobilekit.core.files import atomic_directory, atomic_write_json

    with atomic_directory(out) as fresh:
        for result in results:
            # the id of a set of one's own holds a colon, and of the hub a slash
            workload = result.workload.id.replace("/", "_").replace(":", "_")
            name = f"evaluate-{workload}-{result.artifact.id}.json"
            atomic_write_json(fresh / name, result.to_json())
    return [out]


def _with_letters(results: Sequence[Result], purpose: str) -> list[Result]:
    from mobilekit.core.errors import UsageError

    chosen = [result for result in results if result.letters]
    if not chosen:
        raise UsageError(f"there are no letters to {purpose}", hint="Add --suite mobile_mmlu.")
    return chosen


def _compared(
    results: Sequence[Result], other: Result, settings: dict[str, Any], out: Path | None
) -> list[dict[str, Any]]:
    """Compare every result that has letters with the one that was given, which comes first."""
    from mobilekit import evaluate
    from mobilekit.core.files import atomic_write_json

    key = settings.get("key")
    found = []
    for result in _with_letters(results, "compare"):
        one = evaluate.compare(other, result, key=None if key is None else str(key))
        if out is not None:
            atomic_write_json(out / f"compare-{result.artifact.id}.json", one)
        found.append(one)
    return found


def _submitted(results: Sequence[Result], folder: Path, path: str) -> list[Path]:
    from mobilekit import evaluate

    chosen = _with_letters(results, "submit")
    return [evaluate.write_submission(one, folder, _model_name(path, one)) for one in chosen]


def _model_name(path: str, result: Result) -> str:
    """Return the name a submission goes by: the checkpoint's, or the bundle's and artifact's."""
    name = Path(path).stem if Path(path).exists() else path  # a hub id keeps its owner
    return name if result.artifact.id == "torch" else f"{name}_{result.artifact.id}"


def _answer(
    results: Sequence[Result], compared: Sequence[dict[str, Any]], files: Sequence[Path]
) -> Answer:
    from mobilekit import evaluate

    rows = [[r.artifact.id, r.workload.id, evaluate.summary_line(r)] for r in results]
    for one in compared:
        sides = f"{one['first']['artifact']} → {one['second']['artifact']}"
        rows.append([sides, "compared", evaluate.comparison_line(one)])
    data: Any = [result.to_json() for result in results]
    if compared:
        data = {"results": data, "comparisons": list(compared)}
    closing = ["", *(f"Results {file}" for file in files)] if files else []
    return Answer(data, headers=("artifact", "suite", "result"), rows=rows, closing=closing)
