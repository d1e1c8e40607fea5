"""streamcli.protocol.secrets: what is secret is not shown, whole or in pieces, and nothing else changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.protocol.secrets import hidden, hidden_text, worth_hiding

KEY = "sk-ant-api03-Zm9vYmFyYmF6cXV4"


@pytest.mark.parametrize("size", range(12, len(KEY) + 1))
def test_a_piece_of_a_secret_is_hidden_wherever_it_was_cut(size):
    for start in range(len(KEY) - size + 1):
        piece = KEY[start : start + size]
        assert hidden_text(f"no such key: {piece}", [KEY]) == "no such key: ***"
        assert hidden(f"{piece}!".encode(), [KEY]) == b"***!"


def test_the_longer_of_two_secrets_is_hidden_as_one():
    assert hidden_text(f"{KEY} {KEY}-long", [KEY, f"{KEY}-long"]) == "*** ***"


@pytest.mark.parametrize("text", ["an api key", "sk-ant", "", "é\ud800", "sk-ant-api0"])
def test_what_is_no_secret_stays(text):
    assert hidden_text(text, [KEY]) == text


def test_a_short_secret_is_hidden_where_it_stands_whole():
    assert hidden_text("the key lm-studio is wrong", ["lm-studio"]) == "the key *** is wrong"


@given(st.text(alphabet="sk-antapi03Zm9 ", max_size=60))
def test_no_long_piece_is_ever_left(text):
    shown = hidden_text(text + KEY[3:20] + text, [KEY])
    assert not any(KEY[at : at + 12] in shown for at in range(len(KEY) - 11))


@pytest.mark.parametrize("word", ["lm-studio", "ollama", "not needed", "EMPTY", "x", "no_key.at.all"])
def test_a_word_that_stands_for_a_key_is_none(word):
    assert not worth_hiding(word)


@pytest.mark.parametrize("key", [KEY, "sk-secret", "a1b2c3d4", "hunter2", "abcdefghijklmnopqrstuvwx"])
def test_a_key_is_worth_hiding(key):
    assert worth_hiding(key)
