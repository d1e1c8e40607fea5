"""streamcli.protocol.userinput: what is read is what was written, and what cannot be read is named with its place."""

import pytest

from streamcli.errors import UsageError
from streamcli.protocol.userinput import decoded, json_value


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
