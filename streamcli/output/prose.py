"""Text as models write it in, parts of it out: its last fenced block, and pieces that end where sentences do.

Contract: the parts are the text itself, unchanged. No I/O.
"""

from __future__ import annotations

import re
import textwrap

# As in CommonMark, but a fence may be indented further, as in lists.
_FENCE = r"[ \t]*(`{3,}|~{3,})[ \t]*(.*)"
_SENTENCE_END = "[.!?\u2026:;][\"'\u201d\u2019)\\]]*[ \\t]+|\\n+|[\u3002\uff01\uff1f]"


def last_fenced_block(text: str) -> str | None:
    """The content of the last fenced block, or None if there is none or the last one is not closed."""
    block: str | None = None
    fence = ""  # that of the block we are in
    lines: list[str] = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):  # splitlines knows more line ends
        match = re.fullmatch(_FENCE, line.rstrip())
        if not fence:
            if match and not (match[1][0] == "`" and "`" in match[2]):  # else it is a code span
                fence, lines, block = match[1], [], None
        elif match and match[1].startswith(fence) and not match[2]:
            block, fence = "".join(lines), ""
            if line[0].isspace():
                block = textwrap.dedent(block)
        else:
            lines.append(line)
    return block


def pieces(text: str, most: int) -> tuple[list[str], str]:
    """`text` cut after each sentence, each line and each `most` characters; and the rest, which is not complete yet."""
    found: list[str] = []
    start = 0
    for match in re.finditer(_SENTENCE_END, text):
        found += _cut(text[start : match.end()], most)
        start = match.end()
    rest = _cut(text[start:], most)
    held = rest.pop() if rest and len(rest[-1]) < most else ""
    return found + rest, held


def _cut(text: str, most: int) -> list[str]:
    return [text[start : start + most] for start in range(0, len(text), most)]
