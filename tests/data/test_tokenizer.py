from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from mobilekit.core.errors import InvalidInputError
from mobilekit.data.tokenizer import TextTokenizer, load_tokenizer, wrap_tokenizer


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    pieces = alphabet + ["".join(pair) for pair in merges]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return inner


def with_start() -> Tokenizer:
    inner = byte_level()
    start = inner.token_to_id("<s>")
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    return inner


@given(st.text(st.characters(codec="utf-8")))
def test_text_comes_back_and_ends_cover_it(text: str) -> None:
    tokenizer = TextTokenizer(byte_level())
    ids, ends = tokenizer.encode_with_ends(text)
    assert ids == tokenizer.encode(text)
    if "<s>" not in text and "</s>" not in text:
        assert tokenizer.decode(ids) == text
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text)


def test_a_start_token_is_a_prefix_and_not_part_of_the_text() -> None:
    tokenizer = TextTokenizer(with_start())
    start = with_start().token_to_id("<s>")
    assert tokenizer.prefix_ids == (start,)
    assert start not in tokenizer.encode("the text")
    assert TextTokenizer(byte_level()).prefix_ids == ()
    assert tokenizer.vocab_size == 256 + 3 + 2


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    inner = byte_level()
    inner.enable_truncation(4)
    inner.enable_padding(length=16)
    assert len(TextTokenizer(inner).encode("0123456789")) == 10


@pytest.mark.parametrize("folder", ["", "tokenizer"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "</s>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "</s>"}}),
        ("generation_config.json", {"eos_token_id": [260, 259]}),
        ("config.json", {"eos_token_id": 260}),
    ],
)
def test_loads_from_a_checkpoint_or_a_bundle(
    tmp_path: Path, folder: str, name: str, content: dict[str, object]
) -> None:
    inner = byte_level()
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    inner.save(str(place / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_id is None
    (place / name).write_text(json.dumps(content), encoding="utf-8")
    for given_path in (tmp_path, place / "tokenizer.json"):
        tokenizer = load_tokenizer(given_path)
        assert tokenizer.eos_id == inner.token_to_id("</s>") == 260
        assert tokenizer.encode("in the end") == inner.encode("in the end").ids


def test_the_same_ids_as_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=with_start(), eos_token="</s>")
    fast.save_pretrained(tmp_path)
    ours, text = load_tokenizer(tmp_path), "the café, and the 😀"
    assert ours.encode(text) == fast(text, add_special_tokens=False)["input_ids"]
    assert [*ours.prefix_ids, *ours.encode(text)] == fast(text)["input_ids"]
    assert ours.eos_id == fast.eos_token_id == wrap_tokenizer(fast).eos_id
    assert wrap_tokenizer(fast).encode(text) == ours.encode(text)
    assert wrap_tokenizer(ours) is ours


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(InvalidInputError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")
    for content in (b"{}", b"no json", b"\xff\xfe", b'{"model": {"type": "Nonsense"}}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InvalidInputError, match="is not a tokenizer"):
            load_tokenizer(tmp_path)
    with pytest.raises(InvalidInputError, match="object is no fast tokenizer"):
        wrap_tokenizer(object())
