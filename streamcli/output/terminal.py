"""Text from a server in, text that a terminal shows and never obeys out.

Contract: control characters become visible, tab and newline stay, and nothing else changes. An escape sequence needs
its first character to act, so making each character visible by itself is enough, however a stream cuts it; only a CR
must wait for the next character, because CRLF is a line end. Only for terminals and diagnostics: elsewhere bytes
pass untouched.
"""

from __future__ import annotations

import re

_CONTROLS = {code: f"^{chr(code ^ 0x40)}" for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n"}
_CONTROLS |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
# What reorders or hides the text around it: bidirectional controls (UAX 9), line and paragraph separators.
_CONTROLS |= {
    code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


class Visible:
    """The filter of one stream of text."""

    def __init__(self) -> None:
        self._carriage_return = False
        self.at_line_start = True

    def feed(self, text: str) -> str:
        """`text` made visible, but for a final CR, which waits."""
        if self._carriage_return:
            text = "\r" + text
        self._carriage_return = text.endswith("\r")
        if self._carriage_return:
            text = text[:-1]
        return self._shown(text.replace("\r\n", "\n"))

    def close(self) -> str:
        """What still waits."""
        waiting, self._carriage_return = self._carriage_return, False
        return self._shown("\r" if waiting else "")

    def _shown(self, text: str) -> str:
        if text:
            self.at_line_start = text.endswith("\n")
        return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """`text` on one line for a diagnostic: blanks of any kind become one, controls visible."""
    clean = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    return re.sub(r"[ \t\r\n]+", " ", clean).strip().translate(_CONTROLS)
