"""streamcli.protocol.secrets: what is secret is not shown, whole or in pieces, and nothing else changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.protocol.secrets import (
    hidden,
    hidden_text,
    is_secret,
    secrets_of,
    split_scheme,
    without_secrets,
    worth_hiding,
)

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


SECRETS = (
    "X-Api-Key",
    "apikey",
    "Authorization",
    "Proxy-Authorization",
    "x-auth-token",
    "X-Gateway-Token",
    "X-AuthToken",
)
SECRETS += ("Cookie", "Set-Cookie", "x-client-secret", "X_PASSWORD", "Ocp-Apim-Subscription-Key", "x-jwt-assertion")
PLAIN = (
    "x-portkey-config",
    "x-portkey-provider",
    "x-max-tokens",
    "anthropic-ratelimit-tokens-limit",
    "x-author",
    "x-team",
)
PLAIN += ("x-monkey", "x-tokenizer", "content-type", "x-authority", "anthropic-version", "user-agent", "request-id")


@pytest.mark.parametrize("name", SECRETS)
def test_a_header_that_is_named_after_a_secret_holds_one(name):
    assert is_secret(name)
    assert is_secret(name.lower())


@pytest.mark.parametrize("name", PLAIN)
def test_a_header_whose_name_only_sounds_like_one_holds_none(name):
    assert not is_secret(name, "pc-production-1")
    assert list(secrets_of([(name, "pc-production-1")])) == []


@pytest.mark.parametrize("value", ["Bearer x", "basic eA==", f"key={KEY}", '{"provider":"a","api_key" : "b"}', KEY])
def test_a_value_may_say_itself_that_it_is_a_secret(value):
    assert without_secrets([("x-portkey-config", value), ("x-team", "blue")]) == {
        "x-portkey-config": "***",
        "x-team": "blue",
    }


def test_a_secret_is_the_value_without_its_scheme_and_the_password_in_it():
    headers = [("authorization", f"Bearer {KEY}"), ("proxy-authorization", "Basic dXNlcjpwQHNzdzByZA=="), ("a", "b")]
    assert list(secrets_of(headers)) == [KEY, "dXNlcjpwQHNzdzByZA==", "p@ssw0rd"]
    assert list(secrets_of([("authorization", "Basic none"), ("x-api-key", "lm-studio")])) == []
    assert split_scheme("bearer  a b ") == ("bearer  ", "a b")
    assert split_scheme("Bearer") == ("", "Bearer")
