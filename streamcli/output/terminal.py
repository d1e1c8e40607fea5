"""Text from a server in, text out that a terminal shows and does not obey.

Contract: control characters become visible, tab and newline stay, and nothing else changes. An escape sequence does
nothing without its first character, so it is enough to make each character visible by itself, however a stream cuts the
sequence; only a CR must wait for the next character, because CRLF is a line end. This is for terminals and diagnostics;
elsewhere bytes pass unchanged.
"""

from __future__ import annotations

import codecs
import re

_CONTROLS = {code: f"^{chr(code ^ 0x40)}" for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n"}
_CONTROLS |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
# Characters that reorder or hide the text around them: bidirectional controls (UAX 9), line and paragraph separators.
_CONTROLS |= {
    code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


class Visible:
    """The filter for one stream of text."""

    def __init__(self) -> None:
        self._carriage_return = False

    def feed(self, text: str) -> str:
        """`text` made visible, except for a final CR, which waits."""
        if self._carriage_return:
            text = "\r" + text
        self._carriage_return = text.endswith("\r")
        if self._carriage_return:
            text = text[:-1]
        return text.replace("\r\n", "\n").translate(_CONTROLS)

    def close(self) -> str:
        """The CR that still waits, if any."""
        waiting, self._carriage_return = self._carriage_return, False
        return "^M" if waiting else ""


class Shown:
    """The filter for one output: control characters made `visible`, the last line ended if it `ends_line`."""

    def __init__(self, *, visible: bool, ends_line: bool) -> None:
        self._makes_visible = visible
        self.ends_line = ends_line
        self._at_line_start = True
        self.begin()

    def begin(self) -> None:
        """Forget what was waiting."""
        self._visible = Visible()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """What there is to show of `data`; a character that was cut waits for its other bytes, unless it is `final`."""
        if self._makes_visible:
            text = self._visible.feed(self._decoder.decode(data, final))
            data = (text + self._visible.close() if final else text).encode()
        if data:
            self._at_line_start = data.endswith(b"\n")
        return data

    def end(self) -> bytes:
        """What still waits, and the end of the line."""
        shown = self.feed(b"", final=True)
        return shown + b"\n" if self.ends_line and not self._at_line_start else shown


def one_line(text: str) -> str:
    """`text` on one line for a diagnostic: white space becomes one blank, control characters become visible."""
    clean = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    return re.sub(r"[ \t\r\n]+", " ", clean).strip().translate(_CONTROLS)
