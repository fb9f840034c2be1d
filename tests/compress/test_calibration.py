import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mobilekit as mk
from mobilekit.compress.calibration import given_batches, run_batches, text_batches
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.data.corpora import training_text

TEXT = "the quick brown fox jumps over the lazy dog, and then it sleeps. " * 9


@pytest.fixture
def on_disk(tiny_qwen3: nn.Module, byte_tokenizer: Path, tmp_path: Path) -> nn.Module:
    """A tiny model that comes from a checkpoint with a byte-level tokenizer."""
    path = mk.save(copy.deepcopy(tiny_qwen3), tmp_path / "model")
    shutil.copytree(byte_tokenizer, path, dirs_exist_ok=True)
    return mk.load(path, device="cpu")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def drawn(model: nn.Module, source: str, **changes: int) -> Any:
    wanted = {"tokens": 64, "length": 16, "batch_size": 3, "seed": 0, **changes}
    return text_batches(model, source, **wanted)


def test_windows_of_a_text_file(on_disk: nn.Module, text: str) -> None:
    found = drawn(on_disk, text)
    assert [tuple(batch.shape) for batch in found.batches] == [(3, 16), (1, 16)]
    assert found.record["name"] == "text.txt"
    assert found.record["tokens"] == 64
    assert found.record["sequences"] == 4
    assert len(found.record["sha256"]) == 64
    assert drawn(on_disk, text, tokens=65).record["tokens"] == 80  # rounded up to whole windows


def test_windows_follow_the_seed_and_not_the_batch_size(on_disk: nn.Module, text: str) -> None:
    first = torch.cat(drawn(on_disk, text).batches)
    assert torch.equal(first, torch.cat(drawn(on_disk, text, batch_size=1).batches))
    assert not torch.equal(first, torch.cat(drawn(on_disk, text, seed=1).batches))


def test_the_embedded_text_says_what_it_is(on_disk: nn.Module) -> None:
    found = drawn(on_disk, "embedded")
    assert found.record["name"] == "cpython-training"
    assert found.record["sha256"] == hashlib.sha256(training_text().encode()).hexdigest()


def test_text_that_cannot_be_used(
    on_disk: nn.Module, tiny_qwen3: nn.Module, text: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        drawn(on_disk, str(tmp_path / "absent"))
    (tmp_path / "short").write_text("abc")
    with pytest.raises(InvalidInputError, match="holds 3 tokens, a window needs 16"):
        drawn(on_disk, str(tmp_path / "short"))
    with pytest.raises(UsageError, match="sequences of 500 tokens .* takes 1 to 128"):
        drawn(on_disk, text, length=500)
    with pytest.raises(UsageError, match="was not loaded from a checkpoint") as caught:
        drawn(tiny_qwen3, text)
    assert "data=" in caught.value.hint


def test_a_checkpoint_without_a_tokenizer(tiny_qwen3: nn.Module, text: str, tmp_path: Path) -> None:
    path = mk.save(copy.deepcopy(tiny_qwen3), tmp_path / "bare")
    with pytest.raises(UsageError, match="has none"):
        drawn(mk.load(path, device="cpu"), text)


def test_a_tokenizer_of_another_model(on_disk: Any, text: str) -> None:
    on_disk.model.embed_tokens.weight = nn.Parameter(on_disk.model.embed_tokens.weight[:64])
    with pytest.raises(InvalidInputError, match="the model has 0 to 63"):
        drawn(on_disk, text)


def test_given_tokens(tiny_qwen3: nn.Module) -> None:
    ids = torch.arange(30).reshape(5, 6)
    cut = given_batches(tiny_qwen3, ids, batch_size=2)
    assert [len(batch) for batch in cut.batches] == [2, 2, 1]
    assert cut.record == given_batches(tiny_qwen3, list(ids), batch_size=9).record
    assert cut.record["tokens"] == 30
    assert cut.record["sequences"] == 5
    mixed = given_batches(tiny_qwen3, [[1, 2, 3], [[4, 5], [6, 7]], ids[0].int()], batch_size=1)
    assert [tuple(batch.shape) for batch in mixed.batches] == [(1, 3), (2, 2), (1, 6)]
    assert all(batch.dtype == torch.int64 for batch in mixed.batches)
    other = given_batches(tiny_qwen3, ids.flip(0), batch_size=2)
    assert other.record["sha256"] != cut.record["sha256"]


def test_sequences_are_told_apart_in_the_hash(tiny_qwen3: nn.Module) -> None:
    one, two = ([[[1, 2], [3, 4]]], [[[1, 2, 3, 4]]])
    records = [given_batches(tiny_qwen3, data, batch_size=1).record for data in (one, two)]
    assert records[0]["sha256"] != records[1]["sha256"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("some text", "data is str"),
        (7, "data is int"),
        (torch.zeros(4, dtype=torch.long), r"Tensor of shape \[4\]"),
        (torch.zeros(2, 4), r"Tensor of shape \[2, 4\]"),
        ([torch.zeros(2, 2, 2, dtype=torch.long)], r"shape \[2, 2, 2\]"),
        ([[1, 2], [[3, 4], [5]]], "data is list"),
        ([["a"]], "data is list"),
        ([[True, False]], "data is list"),
        ([[]], "data is list"),
        ([], "holds no batch"),
    ],
    ids=str,
)
def test_data_that_is_no_tokens(data: Any, words: str, tiny_qwen3: nn.Module) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        given_batches(tiny_qwen3, data, batch_size=2)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("bad", [-1, 256])
def test_ids_that_the_model_has_not(bad: int, tiny_qwen3: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match="the model has 0 to 255"):
        given_batches(tiny_qwen3, [[1, bad]], batch_size=1)


def test_observers_see_every_token_of_every_batch(tiny_qwen3: Any) -> None:
    ids = torch.arange(40).reshape(5, 8)
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        assert not torch.is_grad_enabled()
        assert not module.training
        seen.append(args[0])

    path = "model.layers.1.mlp"
    run_batches(tiny_qwen3, ids.split(2), {path: look}, description="looking")
    assert [tuple(x.shape) for x in seen] == [(2, 8, 64), (2, 8, 64), (1, 8, 64)]
    expected: list[Tensor] = []
    module = tiny_qwen3.get_submodule(path)
    handle = module.register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    with torch.no_grad():
        tiny_qwen3(ids)
    handle.remove()
    torch.testing.assert_close(torch.cat(seen), expected[0])


def test_the_model_is_as_before(tiny_qwen3: Any) -> None:
    model = copy.deepcopy(tiny_qwen3).train()
    model.model.layers[0].eval()  # of mixed modes, as after freezing a part
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    for look, ends in ((lambda *_: None, False), (fail, True)):
        try:
            run_batches(
                model, [torch.tensor([[1, 2]])], {"model.layers.0.mlp": look}, description="x"
            )
        except KeyboardInterrupt:
            assert ends
        assert [module.training for module in model.modules()] == modes
        assert not model.model.layers[0].mlp._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_module_that_never_runs(tiny_qwen3: Any) -> None:
    model = copy.deepcopy(tiny_qwen3)
    model.spare = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="spare of Qwen3ForCausalLM is not called"):
        run_batches(model, [torch.tensor([[1, 2]])], {"spare": lambda *_: None}, description="x")
