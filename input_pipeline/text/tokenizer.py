"""From a sentence to its tokens, exactly as published, so that released weights meet the words they know."""

from __future__ import annotations

import re


def tokenize(sentence: str, max_words: int) -> list[str]:
    r"""Splits a sentence into lower-case tokens by the rule of LBDT's released code.

    The stripped sentence is split at every run of non-word characters (`\W+`) and those runs are kept, except single
    spaces. So "the dog, running." gives ["the", "dog", ", ", "running"]: a comma with its space is one token (which
    GloVe does not know), and a final token "." is dropped, before the sentence is cut.

    One deviation: the released code gives the sentence "." no token at all, which masks every key of its attention
    and ends in NaN. Here it is the empty sentence, which has one empty token.

    Args:
      sentence: any text, of any length.
      max_words: N, the most tokens to keep (25 as published), at least 1.

    Returns:
      1 to N tokens. The empty sentence is [""].
    """
    tokens = [token.lower() for token in re.split(r"(\W+)", sentence.strip()) if token not in ("", " ")]
    if tokens and tokens[-1] == ".":
        tokens.pop()
    return tokens[:max_words] or [""]
