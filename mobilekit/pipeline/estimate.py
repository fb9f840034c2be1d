"""Estimate what the steps of a run need, before it starts; what an export needs it knows itself.

Every figure from here is an estimate, made from the source checkpoint: compression only makes
later steps smaller. They are of the host's memory, also where a step computes on a GPU.

Calibrated on random Qwen3-MoE checkpoints in bfloat16, one thread on x86-64; estimated / measured
peak RSS of a process that does the step and nothing else, in MB:

    parameters   compress      recover, next   recover, distill   evaluate      profile's worker
    2.8 M         473 / 436    1113 / 1026     1334 / 1181         597 / 545     584 / 484
    19.6 M        606 / 547    2052 / 1808     3304 / 2765         768 / 707     668 / 546
    102 M        1269 / 973    4551 / 3876     7477 / 6048        1233 / 1132   1082 / 876

That is compression through memory. File to file it was 510 / 432, 443, 446 and 458 MB, at 2.8 M,
19 M, 105 M and 877 M.

A compress step that looks at 65,536 tokens of the embedded text: 923 / 853 at 2.8 M.

The steps of a run share a process. Memory that a step has freed is given back before the next one,
but what training has loaded stays, and so does what torch keeps for every length it has met. In one
process with recovery and two suites on .pte and .onnx, 2.8 M: export 595 / 572, verify 570 / 508,
evaluate 955 / 848.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mobilekit.core.needs import Need
from mobilekit.data.tokens import is_token_file
from mobilekit.export.estimate import MB, PARENT_BASE, ModelFacts, artifact_bytes
from mobilekit.export.preflight import ExportPlan
from mobilekit.recipe import Recipe
from mobilekit.train.recover import RecoverConfig

from .compressing import is_on_disk

_COMPRESS_COPIES = 4.0  # of the loaded weights: the model, its slices, and what is being written
_STREAMED = 60 * MB  # blocks of the files, where the model is never loaded
_TRAIN_BYTES = 16  # a parameter, in float32: weights, gradients, two moments
_TEXT = 450 * MB  # the training text, as text and as tokens
_TEXT_COPIES = 3  # of a user's file: as bytes, as text, and what is made of it
_ACTIVATIONS = 24  # float32 values a token, layer and hidden unit that backward needs
_LOGITS = 4  # float32 copies of a batch's logits, gradients included
_DISTILL_LOGITS = 6.5  # the same for the teacher's, with both softmaxes
_MEASURING = 120 * MB  # held-out text, questions, the runtime
_AFTER_TRAINING = 120 * MB  # what recovery leaves to the steps after it, its garbage returned
_RUNTIMES = {"executorch": 90 * MB, "onnx": 30 * MB}  # Core ML's, on macOS, was not measured
_NEXT_SUITE = 100 * MB  # kernels that torch keeps for the lengths of one more suite
_MEASURED_COPIES = 2.5  # of a model that is run
_WINDOW = 256  # tokens a forward pass of an evaluation
_WINDOW_LOGITS = 6  # float32 copies of a window's logits
_WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def step_needs(recipe: Recipe, facts: ModelFacts, plan: ExportPlan | None) -> list[Need]:
    """Return the estimated need of every step of a recipe, in order.

    Args:
        recipe: The recipe.
        facts: Facts of its source checkpoint.
        plan: The plan of its export, or ``None`` where it exports nothing.
    """
    return list(_needs(recipe, facts, plan))


def _needs(recipe: Recipe, facts: ModelFacts, plan: ExportPlan | None) -> Iterator[Need]:
    if recipe.compress:
        bytes_each = _WEIGHT_BYTES.get(recipe.model.dtype)
        loaded = facts.parameters * bytes_each if bytes_each else facts.weight_bytes
        trained = any(config.trains for config in recipe.method_configs())
        model = _STREAMED if is_on_disk(recipe) else _COMPRESS_COPIES * loaded
        model += _TRAIN_BYTES * facts.parameters * trained
        yield _alone("compress", model + _calibration_text(recipe), loaded)
    if recipe.recover is not None:
        state = 12 * facts.parameters  # weights and moments, kept for resuming
        yield _alone("recover", _training(recipe.recover, facts), facts.weight_bytes + state)
    left = _AFTER_TRAINING if recipe.recover is not None else 0
    if plan is not None:
        export = plan.need
        yield replace(
            export, memory_bytes=export.memory_bytes + left, own_bytes=export.own_bytes + left
        )
        yield _alone("verify", left)
    if recipe.profile is not None:
        worker = PARENT_BASE + _running(facts, recipe)
        yield Need("profile", PARENT_BASE + left + worker, PARENT_BASE + left)
    if recipe.evaluate:
        yield _alone("evaluate", left + _evaluating(facts, recipe))
    yield _alone("report", left)


def _calibration_text(recipe: Recipe) -> int:
    """Return the bytes that the largest text takes which a compress step looks at."""
    sizes = [0]
    for config in recipe.method_configs():
        if config.files():
            sizes.append(sum(_TEXT_COPIES * Path(path).stat().st_size for path in config.files()))
        elif config.needs_data:
            sizes.append(_TEXT)
    return max(sizes)


def _alone(step: str, added: float, disk: int = 0) -> Need:
    """Return the need of a step that runs in this process."""
    peak = round(PARENT_BASE + added)
    return Need(step, peak, peak, {"output": disk})


def _evaluating(facts: ModelFacts, recipe: Recipe) -> int:
    """Return the bytes that the suites add: whatever they run, they run it in this process."""
    logits = _WINDOW_LOGITS * 4 * _WINDOW * facts.vocab_size
    targets = recipe.export.targets if recipe.export is not None else ()
    runtimes = sum(_RUNTIMES.get(target, 0) for target in set(targets))
    suites = _NEXT_SUITE * (len(recipe.evaluate) - 1)
    return _running(facts, recipe) + logits + runtimes + suites


def _training(config: RecoverConfig, facts: ModelFacts) -> int:
    """Return the bytes that recovery training adds: states, activations, logits, teacher, text."""
    tokens = config.batch_size // config.gradient_accumulation * config.sequence_length
    is_taught = "distill" in config.objective
    layers = _ACTIVATIONS * facts.num_layers * facts.hidden_size
    logits = (_LOGITS + _DISTILL_LOGITS * is_taught) * facts.vocab_size
    teacher = facts.float32_bytes * is_taught
    original = facts.weight_bytes * config.keep_better
    forward = 4 * tokens * (layers * (1 + is_taught) + logits)
    states = _TRAIN_BYTES * facts.parameters + original
    return round(_training_text(config) + states + forward + teacher)


def _training_text(config: RecoverConfig) -> int:
    """Return the bytes that the training text takes: a token file is read where it lies."""
    if not config.files():
        return _TEXT
    texts = [path for path in config.files() if not is_token_file(path)]
    return sum(_TEXT_COPIES * Path(path).stat().st_size for path in texts)


def _running(facts: ModelFacts, recipe: Recipe) -> int:
    """Return the bytes of the largest model that a run measures: a checkpoint or an artifact."""
    sizes = [facts.weight_bytes]
    context_length = 0
    if recipe.export is not None:
        sizes += [artifact_bytes(facts, precision) for precision in recipe.export.precisions]
        context_length = recipe.export.context_length
    caches = 2 * facts.cache_bytes(context_length)
    return round(_MEASURING + _MEASURED_COPIES * max(sizes) + caches)
