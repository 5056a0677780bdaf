"""Characters that no installed font has are counted instead of drawn."""

from __future__ import annotations

import pytest

from lbdt_jax.visualization import text as text_rendering


def test_characters_without_a_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rendering, "SYSTEM_FONTS", ())
    text_rendering.choose_font.cache_clear()
    assert text_rendering.choose_font(" the\tred dog ", 20)[0] == "the red dog"
    assert text_rendering.choose_font("un café", 20)[0] == "un cafe"
    assert (
        text_rendering.choose_font("一只狗 left\x00", 20)[0]
        == "(3 characters without a font) left(1 character without a font)"
    )

    # A system font that has them is chosen; its size distinguishes it from Pillow's font.
    pillow_font = text_rendering._load("", 20)
    monkeypatch.setattr(text_rendering, "SYSTEM_FONTS", ("missing.ttf", "all.ttf"))
    monkeypatch.setattr(
        text_rendering,
        "_load",
        lambda name, size: {"": pillow_font, "all.ttf": pillow_font.font_variant(size=21)}.get(name),
    )
    monkeypatch.setattr(
        text_rendering, "_has", lambda font, character: font.size == 21 or character.isascii() or character == "…"
    )
    text_rendering.choose_font.cache_clear()
    for text, size in (("café 一只狗", 21), ("cafe", 20)):
        assert (text_rendering.choose_font(text, 20)[0], text_rendering.choose_font(text, 20)[1].size) == (text, size)
    text_rendering.choose_font.cache_clear()


def test_long_texts_are_cut_before_they_are_measured() -> None:
    text, _ = text_rendering.choose_font("dog " * 10**6, 20)
    assert text.endswith("…") and len(text) < 10_000
