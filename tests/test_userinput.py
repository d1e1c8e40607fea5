"""streamcli.protocol.userinput: what is read is what was written, and what cannot be read is named with its place."""

import pytest

from streamcli.errors import UsageError
from streamcli.protocol.userinput import decoded, json_value, key_in, variable


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "after a byte order mark"])
def test_text_is_as_it_was_written(mark):
    assert decoded(f"{mark}é\ufeff\r\n".encode(), "f") == "é\ufeff\r\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "after a byte order mark"])
def test_a_value_is_as_it_was_written(mark):
    assert json_value(f'{mark} {{"é": 123456789012345678901234567890}}\n'.encode(), "f") == {
        "é": 123456789012345678901234567890
    }


@pytest.mark.parametrize("read", [decoded, json_value])
def test_the_byte_that_is_not_utf_8_is_counted_from_the_start_of_the_file(read):
    with pytest.raises(UsageError, match=r"^f is not UTF-8: byte 5 is 0xff$"):
        read(b"\xef\xbb\xbf1\xff", "f")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"[1", " at column 3 (char 2); or so"),
        (b"\n[1\n", ": line 3 column 1 (char 4); or so"),
        (b"[1,\n?]", ": line 2 column 1 (char 4); or so"),
        (b"[?]\n", " at column 2 (char 1); or so"),
    ],
)
def test_what_is_not_json_is_said_with_its_place(data, place):
    with pytest.raises(UsageError) as caught:
        json_value(data, "f", hint="; or so")
    assert str(caught.value).startswith("f is not JSON: ")
    assert str(caught.value).endswith(place)


KEPT = {
    "sk-1": ("sk-1", ""),
    " \r\n\tsk-1\r\n": ("sk-1", ""),
    "\ufeffsk-1\n": ("sk-1", ""),
    '"sk-1"': ("sk-1", ""),
    "' sk-1 '": ("sk-1", ""),
    "Bearer tok": ("tok", "bearer"),
    '"bearer  tok"': ("tok", "bearer"),
    "ANTHROPIC_API_KEY=sk-1": ("sk-1", ""),
    'export ANTHROPIC_API_KEY="sk-1"\n': ("sk-1", ""),
    "$env:ANTHROPIC_API_KEY = 'sk-1'": ("sk-1", ""),
    "set OPENROUTER_API_KEY=sk-1\r\n": ("sk-1", ""),
    "MY_KEY=Bearer tok": ("tok", "bearer"),
    "ANTHROPIC_AUTH_TOKEN=tok": ("tok", "bearer"),
    "# mine\nsk-1\n\n": ("sk-1", ""),
    "A_TOKEN='sk-1' # mine": ("sk-1", ""),
    "A_TOKEN=sk-1 # mine": ("sk-1", ""),
    "sk-1\nsk-2": ("sk-1\nsk-2", ""),
    "A_KEY=a\nANTHROPIC_AUTH_TOKEN=tok\nANTHROPIC_API_KEY=sk-1\nB=2": ("sk-1", ""),
    "A_KEY=a\nB_KEY=b": ("A_KEY=a\nB_KEY=b", ""),
    "abcd+/xyz==": ("abcd+/xyz==", ""),
    "lm-studio": ("lm-studio", ""),
    '""': ("", ""),
    "'": ("'", ""),
    "": ("", ""),
    "Bearer ": ("Bearer", ""),
}


@pytest.mark.parametrize("text", KEPT)
def test_a_key_is_found_in_what_people_keep_as_one(text):
    assert key_in(text) == KEPT[text]


@pytest.mark.parametrize("value", ["m", " m\r\n", '"m"', "'m' ", "\ufeffm"])
def test_a_variable_is_its_value_without_what_surrounds_it(value):
    assert variable({"A": value}, "A") == "m"
    assert variable({"A": value}, "B") == ""


@pytest.mark.parametrize("value", ['a"b', '"a" "b"', "it's"])
def test_quotes_inside_a_variable_stay(value):
    assert variable({"A": value}, "A") == value
