"""Text as models write it in, parts of it out: its last fenced block, and pieces that end where sentences do.

Contract: what is handed out is the text itself, unchanged; nothing is interpreted. No I/O.
"""

from __future__ import annotations

import re
import textwrap

# CommonMark, but that a fence may be indented by more: those in lists are.
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*(.*)")
_SENTENCE_END = re.compile("[.!?\u2026:;][\"'\u201d\u2019)\\]]*[ \\t]+|\\n+|[\u3002\uff01\uff1f]")


def last_fenced_block(text: str) -> str | None:
    """What stands in the last fenced block, or None where there is none or the last one is not closed."""
    block: str | None = None
    fence, lines = "", list[str]()
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        match = _FENCE.fullmatch(line.rstrip())
        if not fence:
            if match and not (match[1][0] == "`" and "`" in match[2]):
                fence, lines, block = match[1], [], None
        elif match and match[1].startswith(fence) and not match[2]:
            block, fence = textwrap.dedent("".join(lines)) if line[0].isspace() else "".join(lines), ""
        else:
            lines.append(line)
    return block


def pieces(text: str, most: int) -> tuple[list[str], str]:
    """`text` cut after each sentence and each line, and at `most` characters; and the rest, which is not whole yet."""
    found, start = list[str](), 0
    for match in _SENTENCE_END.finditer(text):
        found += _cut(text[start : match.end()], most)
        start = match.end()
    rest = _cut(text[start:], most)
    held = rest.pop() if rest and len(rest[-1]) < most else ""
    return found + rest, held


def _cut(text: str, most: int) -> list[str]:
    return [text[start : start + most] for start in range(0, len(text), most)]
