"""streamcli.output.terminal: nothing that a terminal obeys gets through, and nothing else changes."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.output.terminal import Visible, one_line

# Controls, what is made of them, and what is next to them.
ACTIVE = "".join(map(chr, [*range(0x20), *range(0x7E, 0xA1), *range(0x2027, 0x2030), *range(0x2065, 0x206B), 0x061C]))
TEXT = st.text(st.one_of(st.sampled_from(ACTIVE + "\u200e\u200f[]m"), st.characters(exclude_categories=["Cs"])))
BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def shown(*texts):
    visible = Visible()
    return "".join([*map(visible.feed, texts), visible.close()])


def is_obeyed(character):
    """Whether a terminal would do something other than to show this character, ending a line and tabs excepted."""
    if character in "\t\n":
        return False
    kind = unicodedata.category(character)
    return (
        kind in {"Cc", "Zl", "Zp"}
        or unicodedata.bidirectional(character) in BIDIRECTIONAL
        or character in "\u200e\u200f\u061c"
    )


@given(TEXT)
def test_nothing_that_is_obeyed_survives(text):
    assert not [character for character in shown(text) if is_obeyed(character)]


@given(st.lists(TEXT))
def test_however_it_is_split_the_text_is_the_same(texts):
    assert shown(*texts) == shown("".join(texts))


@given(TEXT)
def test_text_without_controls_is_untouched(text):
    harmless = "".join(character for character in text if not is_obeyed(character))
    assert shown(harmless) == harmless


@given(TEXT)
def test_what_is_left_of_the_text_is_in_place(text):
    """Taking out what was put in for controls leaves what was no control."""
    plain = [character for character in text.replace("\r\n", "\n") if not is_obeyed(character)]
    position = 0
    for character in shown(text):
        if position < len(plain) and character == plain[position]:
            position += 1
    assert position == len(plain)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "^[[31mred^[[0m"),
        ("\x1b]0;title\x07", "^[]0;title^G"),
        ("\x1b]52;c;aGk=\x1b\\", "^[]52;c;aGk=^[\\"),
        ("\x9b2J", "\\x9b2J"),
        ("\x7f\x00", "^?^@"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("a\u2028b", "a\\u2028b"),
        ("a\tb\n", "a\tb\n"),
        ("a\r\nb", "a\nb"),
        ("a\rb", "a^Mb"),
        ("a\r", "a^M"),
        ("\r\r\n", "^M\n"),
        ("a\u200db \U0001f468\u200d\U0001f469", "a\u200db \U0001f468\u200d\U0001f469"),
    ],
)
def test_controls_are_shown_as_themselves(text, expected):
    assert shown(text) == expected


def test_a_line_end_is_not_held_back_for_longer_than_its_second_half():
    visible = Visible()
    assert visible.feed("a\r") == "a"
    assert visible.feed("") == ""
    assert visible.feed("b") == "^Mb"


class TestOneLine:
    @given(st.text())
    def test_it_is_one_line_that_nothing_in_it_can_change(self, text):
        line = one_line(text)
        assert not [character for character in line if character in "\t\n" or is_obeyed(character)]
        assert line.encode().decode() == line

    def test_blanks_of_any_kind_become_one(self):
        assert one_line(" a \t\r\n b\n") == "a b"

    def test_bytes_that_were_no_text_become_replacement_characters(self):
        assert one_line("caf\udce9") == "caf\ufffd"

    @given(st.text())
    def test_once_is_enough(self, text):
        assert one_line(one_line(text)) == one_line(text)
