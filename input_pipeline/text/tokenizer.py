"""Splits a sentence into tokens exactly as published, so that released weights get the words they were trained with."""

from __future__ import annotations

import re


def tokenize(sentence: str, max_words: int) -> list[str]:
    r"""Splits a sentence into lower-case tokens by the rule of LBDT's released code.

    The stripped sentence is split at each run of non-word characters (`\W+`), and these runs are tokens, too, except
    single spaces. "the dog, running." thus becomes ["the", "dog", ", ", "running"]: a comma with its space is one token
    (without a GloVe vector), and a final token "." is dropped before the sentence is truncated.

    There is one deviation: the released code returns no token for the sentence ".", which masks all keys of its
    attention and ends in NaN. Here it is treated like the empty sentence, which has one empty token.

    Args:
      sentence: any text of any length.
      max_words: N, the maximum number of tokens (25 as published), at least 1.

    Returns:
      1 to N tokens; [""] for the empty sentence.
    """
    tokens = [token.lower() for token in re.split(r"(\W+)", sentence.strip()) if token not in ("", " ")]
    if tokens and tokens[-1] == ".":
        tokens.pop()
    return tokens[:max_words] or [""]
