"""streamcli.protocol.jsontext: what orjson rejects or rounds."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamcli.protocol.jsontext import dumps, loads, loads_exact


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (rb'"a\ud800b"', "a\ufffdb"),
        (rb'"\udc00\ud83d\ude00\ud83d"', "\ufffd\U0001f600\ufffd"),
        (rb'"\\ud800\ud800"', "\\ud800\ufffd"),
        (b'"caf\xe9"', "caf\ufffd"),
    ],
)
def test_bad_characters_become_the_replacement_character(text, value):
    assert loads(text) == value


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"[Infinity]", b"{'a':1}", b'"\n"', b"1 2", b"[" * 2000, b"1e999"])
def test_what_is_not_json_is_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        loads(text)
    with pytest.raises(ValueError, match=r"."):
        loads_exact(text)


@given(st.integers() | st.integers(-(10**21), 10**21))
@example(2**64)
@example(-(2**63) - 1)
def test_integers_of_any_size_stay_exact(number):
    value = {"n": number, "s": "\U0001f600"}
    assert loads_exact(dumps(value)) == value
    assert json.loads(dumps(value)) == value


@pytest.mark.parametrize("levels", [200, 300, 1023])
@pytest.mark.parametrize("inner", ["1", "12345678901234567890123"])
def test_whatever_is_read_can_be_written_also_inside_something(levels, inner):
    text = b"[" * levels + inner.encode() + b"]" * levels
    value = loads_exact(text)
    assert dumps({"a": [value]}) == b'{"a":[' + text + b"]}"


def test_a_lone_surrogate_in_a_value_is_value_error():
    with pytest.raises(ValueError, match=r"."):
        dumps({"a": "\ud800"})
