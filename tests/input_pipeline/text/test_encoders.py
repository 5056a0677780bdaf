"""Tokenizers and precomputed features from strangers: refused, or harmless."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.text.encoders import PrecomputedFeatures, TransformerTokenizer

VOCABULARY = {token: index for index, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "the", "red", "circle"))}
CLS = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
SENTENCE = {"Sequence": {"id": "A", "type_id": 0}}


def template(*pieces: dict[str, Any], ids: tuple[int, ...] = (2,)) -> dict[str, Any]:
    special = {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"] * len(ids)}
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [SENTENCE, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": special},
    }


def tokenizer(padding_id: Any = 0, **changes: Any) -> TransformerTokenizer:
    """A tokenizer of whole words, with some parts replaced; used once in every way."""
    description = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": template(CLS, SENTENCE),
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
    }
    made = TransformerTokenizer(json.dumps(description | changes), padding_id)
    made.check_fits(len(VOCABULARY), 8)
    made.tokens("The red circle", 8)
    made.text_for(8)
    return made


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def test_harmless_parts_of_real_tokenizers() -> None:
    ids, mask = tokenizer().encode("The red cat", 8)
    assert ids.tolist() == [2, 3, 4, 1, 0, 0, 0, 0] and mask.sum() == 4
    parts = [replace({"String": "``"}, '"'), replace({"Regex": " {2,}"}, " "), {"type": "Prepend", "prepend": "\u2581"}]
    tokenizer(normalizer={"type": "Sequence", "normalizers": parts})
    fixed = {"Fixed": 10**10}
    padding = {"strategy": fixed, "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
    assert tokenizer(padding={**padding, "pad_id": 0, "pad_token": "[PAD]"}).encode("red", 8)[1].sum() == 2


@pytest.mark.parametrize("padding_id", [-1, 6, 2**40, None, "0", True, 0.0])
def test_a_padding_id_that_is_none(padding_id: Any) -> None:
    with pytest.raises(UserError, match="no token with the padding's id"):
        tokenizer(padding_id)


DOUBLED = replace({"String": "e"}, "ee")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": replace({"String": "e"}, "e" * 10**6)},
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLED] * 40}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [DOUBLED] * 4}] * 4}},
        {"normalizer": replace({"Regex": ""}, "e" * 1000)},
        {"normalizer": replace({"String": ""}, "e")},
        {"normalizer": {"type": "Prepend", "prepend": "e" * 10**6}},
        {"decoder": {"type": "Sequence", "decoders": [DOUBLED] * 40}},
        {"post_processor": template(*[SENTENCE] * 1000)},
    ],
)
def test_tokenizers_that_multiply_a_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="would make a sentence up to .* times as long"):
        tokenizer(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "WordLevel", "vocab": {**VOCABULARY, "cat": 10**8}, "unk_token": "[UNK]"}}, "100000000"),
        ({"model": {"type": "WordLevel", "vocab": {**VOCABULARY, "cat": -1}, "unk_token": "[UNK]"}}, "can't read"),
        ({"model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "[CLS]": 2}, "unk_token": "[UNK]"}}, "can't tokenize"),
        ({"post_processor": template(CLS, SENTENCE, ids=(4_000_000_000,))}, "the id 4000000000"),
        ({"post_processor": template(CLS, SENTENCE, ids=(2,) * 9)}, "adds 9 special tokens to a sentence, of which 8"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}}, "can't"),  # the library panics
        ({"normalizer": [1]}, "can't read"),
        ({"normalizer": replace({"Regex": "("}, "")}, "can't read"),
        ({"post_processor": {"type": "TemplateProcessing", "single": 5}}, "can't read"),
        ({"model": None}, "can't read"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["[PAD]", 0.0]]}}, "can't"),
    ],
)
def test_broken_tokenizers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenizer(**changes)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"model":' * 100_000, " " * (65 << 20), 5, None])
def test_texts_that_are_no_tokenizer(text: Any) -> None:
    with pytest.raises(UserError):
        TransformerTokenizer(text, 0)


def write_features(folder: Path, lengths: Any = (1, 2), features: Any = None) -> None:
    (folder / "sentences.json").write_text(json.dumps({"sentences": ["a", "b"], "lengths": lengths}))
    np.save(folder / "features.npy", np.ones((3, 4), np.float32) if features is None else features)


def test_features_of_several_datasets(tmp_path: Path) -> None:
    for name, sentences in (("first", ["a", "b"]), ("second", ["b", "c"])):
        (tmp_path / name).mkdir()
        write_features(tmp_path / name, features=np.full((3, 4), len(name), np.float32))
        (tmp_path / name / "sentences.json").write_text(json.dumps({"sentences": sentences, "lengths": [1, 2]}))
    second = PrecomputedFeatures(tmp_path / "second", tokenizer())
    features = PrecomputedFeatures(tmp_path / "first", tokenizer(), second)
    assert [float(features.encode(sentence, 3)[0].max()) for sentence in "abc"] == [5, 5, 6]
    with pytest.raises(UserError, match="second has no features of 'd'"):
        features.encode("d", 3)


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: write_features(folder, [-1, 4]),
        lambda folder: write_features(folder, [1.0, 2]),
        lambda folder: write_features(folder, [10**30, 2]),
        lambda folder: write_features(folder, 3),
        lambda folder: write_features(folder, features=np.ones((3, 4), np.int64)),
        lambda folder: write_features(folder, features=np.ones((3, 4), np.complex64)),
        lambda folder: write_features(folder, features=np.array([[None] * 4] * 3)),
        lambda folder: write_features(folder, features=np.float32(1)),
        lambda folder: (folder / "features.npy").write_bytes(header("(10000000000, 4)")),
        lambda folder: (folder / "features.npy").write_bytes(b""),
        lambda folder: (folder / "sentences.json").write_text("[" * 100_000),
        lambda folder: (folder / "sentences.json").write_text("null"),
        lambda folder: ((folder / "features.npy").unlink(), os.mkfifo(folder / "features.npy")),
        lambda folder: ((folder / "sentences.json").unlink(), os.mkfifo(folder / "sentences.json")),
    ],
)
def test_broken_features(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_features(tmp_path)
    assert PrecomputedFeatures(tmp_path, tokenizer()).encode("b", 3)[1].tolist() == [True, True, False]
    damage(tmp_path)
    with pytest.raises(UserError, match=f"features in {tmp_path} are incomplete .*Delete the folder"):
        PrecomputedFeatures(tmp_path, tokenizer())
