"""streamcli.output.prose: parts of a text are the text's own characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.output.prose import last_fenced_block, pieces

FENCED = {
    "a block": ("a\n```\nb\n```\nc", "b\n"),
    "a language": ("```python title=x\nb\n```", "b\n"),
    "tildes": ("~~~\nb\n```\n~~~\n", "b\n```\n"),
    "a longer fence": ("````\n```\nb\n```\n````", "```\nb\n```\n"),
    "the last of two": ("```\na\n```\n```\nb\n```\n", "b\n"),
    "an empty one": ("```\n```\n", ""),
    "blank lines inside": ("```\na\n\n\nb\n```", "a\n\n\nb\n"),
    "indented with its list": ("- x\n  ```\n  a\n    b\n  ```\n", "a\n  b\n"),
    "indentation of its own": ("```\n  a\n  b\n```\n", "  a\n  b\n"),
    "odd line ends": ("```\na\u2028b\x0bc\r\n```\r\n", "a\u2028b\x0bc\r\n"),
    "a fence with words does not close": ("```\na\n``` b\n```\n", "a\n``` b\n"),
}
NOT_FENCED = {
    "nothing": "",
    "no block": "a\nb",
    "code in a line": "```a``` b",
    "no end": "```\na",
    "no end of the last": "```\na\n```\n```\nb",
    "a shorter end": "````\na\n```",
    "another end": "```\na\n~~~",
}


@pytest.mark.parametrize("name", FENCED)
def test_the_last_fenced_block_is_found(name):
    text, block = FENCED[name]
    assert last_fenced_block(text) == block


@pytest.mark.parametrize("name", NOT_FENCED)
def test_what_is_not_a_whole_block_gives_nothing(name):
    assert last_fenced_block(NOT_FENCED[name]) is None


@given(st.text(st.sampled_from("a `\n~\r")))
def test_a_block_closed_behind_any_text_is_the_last_one(text):
    block = last_fenced_block(f"{text}\n`````````\n`````````\n``````````\nb\n``````````\n")
    assert block in {"b\n", "`````````\n``````````\nb\n``````````\n", None} or "b\n" in block


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("One. Two", ["One. "], "Two"),
        ("3.14 is", [], "3.14 is"),
        ('"Yes." No', ['"Yes." '], "No"),
        ("line\nnext", ["line\n"], "next"),
        ("\u4f60\u597d\u3002\u518d", ["\u4f60\u597d\u3002"], "\u518d"),
        ("0123456789abc", ["0123456789"], "abc"),
        ("0123456789", ["0123456789"], ""),
        ("", [], ""),
    ],
)
def test_text_is_cut_behind_sentences_and_at_ten_characters(text, whole, rest):
    assert pieces(text, 10) == (whole, rest)


@given(st.text(), st.integers(1, 20))
def test_no_piece_is_too_long_and_nothing_is_lost(text, most):
    whole, rest = pieces(text, most)
    assert "".join(whole) + rest == text
    assert all(0 < len(piece) <= most for piece in whole)
    assert len(rest) < most
