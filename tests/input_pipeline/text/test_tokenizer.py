"""Tokens equal those of the released code."""

from __future__ import annotations

import json

import pytest
from paths import GOLDEN

from input_pipeline.text.tokenizer import tokenize

CASES = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['phrase'][:20]!r}-{case['max_len']}")
def test_tokens_equal_the_released_code(case) -> None:
    tokens = tokenize(case["phrase"], case["max_len"])
    padding = case["max_len"] - len(tokens)
    assert tokens + [""] * padding == case["tokens"]
    if case["phrase"] == ".":  # the only deviation, see `tokenize`
        assert sum(case["mask"]) == 0 and tokens == [""]
    else:
        assert [1] * len(tokens) + [0] * padding == case["mask"]


def test_a_very_long_sentence_is_truncated() -> None:
    assert (
        tokenize("the red circle moving left, " * 400, 25)
        == (["the", "red", "circle", "moving", "left", ", "] * 5)[:25]
    )
    assert tokenize("a" * 10_000, 25) == ["a" * 10_000]
    assert tokenize("," * 10_000, 25) == ["," * 10_000]
