import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.train.forward import forward_with_routing
from mobilekit.train.heldout import heldout_loss, measure_heldout
from mobilekit.train.recover import RecoverConfig, recover

VOCABULARY = 32
SMALL = {"tokens": 4 * 16 * 6, "batch_size": 4, "sequence_length": 16, "learning_rate": 5e-3}


class LetterTokenizer:
    """Tokens are the characters' codes modulo the vocabulary."""

    eos_token_id = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) % VOCABULARY for character in text]}


def rule_text(length: int) -> str:
    """Letters of which each pair allows two successors; attention alone cannot learn that."""
    generator = torch.Generator().manual_seed(11)
    successors = torch.randint(8, (8, 8, 2), generator=generator).tolist()
    coins = torch.randint(2, (length,), generator=generator).tolist()
    letters = [0, 1]
    for coin in coins:
        letters.append(successors[letters[-2]][letters[-1]][coin])
    return "".join(chr(ord("a") + letter) for letter in letters)


@cache
def dense() -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    return Qwen3MoeForCausalLM(config).eval()


def without_experts(model: Any, keep: list[list[int]]) -> Any:
    """A copy of which each layer keeps only the named experts."""
    pruned = copy.deepcopy(model)
    for layer, indices in zip(pruned.model.layers, keep, strict=True):
        experts, router = layer.mlp.experts, layer.mlp.gate
        for module, name in ((experts, "gate_up_proj"), (experts, "down_proj"), (router, "weight")):
            kept = getattr(module, name).detach()[indices].clone()
            setattr(module, name, torch.nn.Parameter(kept))
        experts.num_experts = router.num_experts = len(indices)
    return pruned


def weights(model: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def run(model: Any, **changes: Any) -> Any:
    config = RecoverConfig(**{**SMALL, **changes})
    teacher = dense() if "distill" in config.objective else None
    return recover(
        model, config, tokenizer=LetterTokenizer(), teacher=teacher, data=rule_text(2000)
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"objective": []},
        {"objective": ["next_token", "next_token"]},
        {"objective": ["guess"]},
        {"tokens": 0},
        {"distill_weight": 1.5},
        {"temperature": 0.0},
        {"optimizer": "sgd"},
        {"precision": "float16"},
        {"token": 5},
        {"data": []},
        {"heldout": ()},
        {"data": 3},
        {"batch_size": 8, "gradient_accumulation": 3},
        {"tokens": 100, "warmup": 2},
        {"checkpoint_every": 0},
        {"max_gradient_norm": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        RecoverConfig(**bad)


def test_settings_come_back_from_json():
    config = RecoverConfig(objective=["distill"], tokens=1000)
    assert RecoverConfig.model_validate_json(config.model_dump_json()) == config
    assert RecoverConfig(tokens=1, batch_size=2, sequence_length=8).steps == 1
    assert RecoverConfig(tokens=17, batch_size=2, sequence_length=8).steps == 2
    files = RecoverConfig(data=["a.txt", "b.txt"], heldout="c.npy", warmup=3)
    assert RecoverConfig.parse(files.model_dump(mode="json"), "it") == files
    assert (files.warmup_steps, RecoverConfig().warmup_steps) == (3, 50)
    assert RecoverConfig(tokens=8 * 256 * 70).warmup_steps == 7


def test_training_that_does_not_help_leaves_the_weights_as_they_were(
    capsys: pytest.CaptureFixture[str],
):
    for dtype in (torch.float32, torch.bfloat16):
        before = copy.deepcopy(dense()).to(dtype)
        model, changed = copy.deepcopy(before), copy.deepcopy(before)
        result = run(model, learning_rate=3.0, objective=["next_token"])
        assert result.kept == result.summary()["kept"] == "original"
        assert result.heldout_loss_after >= result.heldout_loss_before
        assert equal(weights(model), weights(before))
        assert "did not lower the held-out loss" in capsys.readouterr().err
        anyway = run(changed, learning_rate=3.0, objective=["next_token"], keep_better=False)
        assert anyway.kept == "trained"
        assert not equal(weights(changed), weights(before))
        assert "did not lower" not in capsys.readouterr().err


def test_bfloat16_products_train_float32_weights():
    model = without_experts(dense(), [[0, 1], [2, 3]])
    before = weights(model)
    result = run(model, precision="bfloat16", tokens=4 * 16 * 40, objective=["next_token"])
    exact = run(
        without_experts(dense(), [[0, 1], [2, 3]]), tokens=4 * 16 * 40, objective=["next_token"]
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not equal(weights(model), before)
    assert result.losses != exact.losses
    assert result.heldout_loss_after < result.heldout_loss_before - 0.5
    assert result.heldout_loss_after == pytest.approx(exact.heldout_loss_after, abs=0.05)


def test_gradient_accumulation_gives_the_same_run():
    cut = run(without_experts(dense(), [[0, 1, 3], [2, 3]]), gradient_accumulation=4)
    whole = run(without_experts(dense(), [[0, 1, 3], [2, 3]]))
    assert cut.losses == pytest.approx(whole.losses, abs=2e-6)
    assert cut.heldout_loss_after == pytest.approx(whole.heldout_loss_after, abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_family_learns(tiny_model: Any, tiny_name: str, precision: str):
    model, tokenizer = copy.deepcopy(tiny_model), LetterTokenizer()
    if hasattr(model.config, "output_router_logits"):
        model.set_experts_implementation("eager")  # as a loaded checkpoint has it on a CPU
    settings = {**SMALL, "tokens": 4 * 16 * 30, "learning_rate": 3e-3, "precision": precision}
    config = RecoverConfig(**{**settings, "objective": ["next_token"]})
    result = recover(model, config, tokenizer=tokenizer, data=rule_text(2000))
    assert result.heldout_loss_after < result.heldout_loss_before - 0.3, tiny_name
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_routing_of_layers_with_different_numbers_of_experts():
    model = without_experts(dense(), [[0, 1, 3], [1, 2]])
    ids = torch.arange(12).reshape(2, 6)
    logits, routing = forward_with_routing(model, ids)
    assert [tuple(layer.shape) for layer in routing] == [(12, 3), (12, 2)]
    torch.testing.assert_close(logits, model(input_ids=ids).logits)
    assert not model.base_model._forward_hooks
    assert not model.base_model._forward_pre_hooks


def test_heldout_measurement_counts_every_token_once():
    text = rule_text(100)
    measured = measure_heldout(dense(), LetterTokenizer(), text, length=24)
    assert measured.tokens == measured.num_bytes == len(text)
    assert [pytest.approx(1.0)] * 2 == [sum(layer) for layer in measured.expert_load]
    nats = 0.0
    for start in range(0, len(text), 24):
        ids = LetterTokenizer()(text[start : start + 24])["input_ids"]
        logits = dense()(input_ids=torch.tensor([[0, *ids]])).logits[0, :-1].double()
        nats -= float(logits.log_softmax(-1)[range(len(ids)), ids].sum().detach())
    assert measured.nats == pytest.approx(nats, rel=1e-5)


def test_recovery_repeats_with_the_seed_and_reports_what_it_did():
    models = [without_experts(dense(), [[0, 1], [2, 3]]) for _ in range(3)]
    results = [run(model, seed=seed) for model, seed in zip(models, (5, 5, 6), strict=True)]
    assert results[0].losses == results[1].losses != results[2].losses
    assert equal(weights(models[0]), weights(models[1]))
    assert not equal(weights(models[0]), weights(models[2]))
    summary = results[0].summary()
    assert summary["steps"] == 6
    assert summary["tokens"] == 4 * 16 * 6
    assert summary["heldout_loss_before"] == results[1].heldout_loss_before


def test_the_teacher_is_not_changed():
    before = weights(dense())
    run(without_experts(dense(), [[0, 1], [0, 1]]), objective=["distill"])
    assert equal(before, weights(dense()))
    assert all(parameter.grad is None for parameter in dense().parameters())


def test_the_teacher_has_nothing_to_teach_itself():
    result = run(copy.deepcopy(dense()), objective=["distill"], balance_weight=0.0)
    assert result.losses[0] == pytest.approx(0.0, abs=1e-5)


def test_half_precision_stays_half_precision():
    model = without_experts(dense(), [[0, 1], [2, 3]]).to(torch.bfloat16)
    before = weights(model)
    run(model, objective=["next_token"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not equal(before, weights(model))


def test_missing_or_foreign_teacher_and_short_text_fail_clearly():
    model, tokenizer = copy.deepcopy(dense()), LetterTokenizer()
    config = RecoverConfig(**SMALL)
    with pytest.raises(UsageError, match="needs the dense model"):
        recover(model, config, tokenizer=tokenizer, data="text")
    foreign = copy.deepcopy(dense())
    foreign.config.vocab_size = 99
    with pytest.raises(UsageError, match="99 tokens"):
        recover(model, config, tokenizer=tokenizer, teacher=foreign, data="text")
    with pytest.raises(InvalidInputError, match="training text"):
        recover(model, config, tokenizer=tokenizer, teacher=dense(), data="too short")


def test_the_state_of_another_student_of_the_same_shape_is_not_continued(tmp_path: Path):
    state, config = tmp_path / "state.safetensors", RecoverConfig(**SMALL)

    def train(keep: list[list[int]], state_path: Path | None) -> list[Tensor]:
        model = without_experts(dense(), keep)
        recover(
            model,
            config,
            tokenizer=LetterTokenizer(),
            teacher=dense(),
            data=rule_text(2000),
            state_path=state_path,
        )
        return weights(model)

    train([[0, 1], [2, 3]], state)
    assert equal(train([[2, 3], [0, 1]], state), train([[2, 3], [0, 1]], None))
    left = state.read_bytes()
    assert equal(train([[2, 3], [0, 1]], state), train([[2, 3], [0, 1]], None))
    assert state.read_bytes() == left  # its own state was whole: no step was left to do


@cache
def trained() -> tuple[Any, float]:
    """The dense model after it learnt the rule, and its held-out loss."""
    model = copy.deepcopy(dense())
    config = RecoverConfig(
        objective=["next_token"], tokens=60_000, sequence_length=32, learning_rate=1e-2
    )
    result = recover(model, config, tokenizer=LetterTokenizer(), data=rule_text(20_000))
    return model, result.heldout_loss_after


@pytest.mark.slow
@pytest.mark.parametrize("objective", [["next_token"], ["distill"], ["next_token", "distill"]])
def test_recovery_gives_back_most_of_what_pruning_took(objective: list[str]):
    teacher, best = trained()
    student = without_experts(teacher, [[0, 1], [2, 3]])
    config = RecoverConfig(
        objective=objective, tokens=20_000, sequence_length=32, learning_rate=5e-3
    )
    result = recover(
        student, config, tokenizer=LetterTokenizer(), teacher=teacher, data=rule_text(20_000)
    )
    lost = result.heldout_loss_before - best
    regained = result.heldout_loss_before - result.heldout_loss_after
    assert lost > 0.1
    assert regained > 0.5 * lost


def test_dropout_does_not_make_training_random():
    def trained() -> list[Tensor]:
        model = copy.deepcopy(dense())
        model.config.attention_dropout = 0.3
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        torch.rand(3)  # whatever else draws from the global generator
        run(model, objective=("next_token",))
        return weights(model)

    assert equal(trained(), trained())


def test_a_half_precision_model_learns_nothing_from_itself():
    model = copy.deepcopy(dense()).bfloat16()
    teacher = copy.deepcopy(model)
    config = RecoverConfig(**{**SMALL, "objective": ("distill",), "balance_weight": 0.0})
    config = config.model_copy(update={"learning_rate": 1e-12})
    text = rule_text(2000)
    result = recover(model, config, tokenizer=LetterTokenizer(), teacher=teacher, data=text)
    assert max(abs(loss) for loss in result.losses) < 1e-6
    assert result.heldout_loss_before == result.heldout_loss_after
    assert equal(weights(model), weights(teacher))


def test_no_phase_of_recovery_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    windows = torch.randint(0, 26, (4, 16))
    heldout_loss(dense(), windows, description="held-out loss before")
    assert "held-out loss before" in capsys.readouterr().err
