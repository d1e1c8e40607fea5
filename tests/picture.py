"""A session of a real shell on a real terminal in, docs/session.svg out: `make picture`, with the embedded model.

What the shell and the command write comes in the time that it took, merged where nobody would see the difference; only
the typing has a pace of its own. The picture moves by CSS alone, again and again; it stands still, complete, where the
reader asks for less motion and where nothing moves in pictures.
"""

import os
import pty
import select
import sys
import tempfile
import time
from html import escape
from itertools import groupby
from pathlib import Path

PICTURE = Path(__file__).parent.parent / "docs" / "session.svg"
COMMANDS = (
    "streamcli --local --temperature 0 'Give me three tips for writing clear code.'",
    "echo $?",
    "streamcli --local --max-tokens 9 --fail-on max_tokens -o tips.md 'Three tips.'",
    "echo $?; ls",
    "streamcli --local --temperature 0 --events 'What is 2+2?' | jq -r .type | uniq -c",
)
COLUMNS, ROWS = 100, 20
PROMPT = b"$ "
PATIENCE = 120  # seconds for one command
KEY, PAUSE, MERGED, HELD = 0.03, 0.8, 0.05, 5.0  # seconds: of typing, before it, between pieces, at the end
CELL, LINE, SIZE, MARGIN = 8.43, 19, 14, 16  # pixels
STYLE = """text{{white-space:pre;fill:#d0d7de;
font:{size}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}}
.p{{fill:#6e9fff}}.c{{fill:#fff;font-weight:600}}
@media(prefers-reduced-motion:no-preference){{tspan{{animation:{seconds:.1f}s step-end infinite}}}}"""


def record(folder):
    """The pieces of the session: the second at which each came, its class, its text."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.execve("/bin/sh", ["sh", "-i"], {"PATH": path, "PS1": PROMPT.decode(), "HOME": folder, "TERM": "dumb"})
    pieces, now = [], 0.0
    for command in (None, *COMMANDS):
        if command:
            now += PAUSE
            for character in command:
                now += KEY
                pieces.append((now, "c", character))
            os.write(terminal, f"{command}\n".encode())
        now = _answer(terminal, len(command or ""), now, pieces)
    os.close(terminal)
    os.waitpid(child, 0)
    return pieces


def _answer(terminal, echoed, now, pieces):
    """Add what comes until the next prompt, without the echo of what was typed; the time when it was there."""
    start, came = time.monotonic(), b""
    while not came.endswith(PROMPT):
        if not select.select([terminal], [], [], PATIENCE)[0]:
            raise SystemExit(f"picture: no prompt after {came!r}")
        before = len(came.replace(b"\r", b""))
        came += os.read(terminal, 65536)
        text = came.replace(b"\r", b"")[max(before, echoed) :].decode()
        prompt = PROMPT.decode() if came.endswith(PROMPT) else ""
        seconds = now + time.monotonic() - start
        pieces += [(seconds, "", text.removesuffix(prompt)), (seconds, "p", prompt)]
    return seconds


def rows(pieces):
    """The lines of the screen, each a list of pieces; a line that is too long goes on in the next."""
    lines, column = [[]], 0
    for seconds, kind, text in pieces:
        for character in text:
            if character == "\n" or column == COLUMNS:
                lines.append([])
                column = 0
            if character != "\n":
                lines[-1].append((seconds, kind, character))
                column += 1
    return lines


def svg(pieces):
    """The session as an animated picture."""
    lines = rows(pieces)
    if len(lines) > ROWS:
        raise SystemExit(f"picture: the session has {len(lines)} lines, {ROWS} have room")
    seconds = pieces[-1][0] + HELD
    moments = {}
    drawn = [_row(number, line, moments) for number, line in enumerate(lines)]
    frames = [
        f"@keyframes k{name}{{0%{{visibility:hidden}}{moment / seconds:.2%}{{visibility:visible}}}}"
        for moment, name in moments.items()
    ]
    width, height = round(COLUMNS * CELL) + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
            f'width="{width}" xml:space="preserve">',
            "<title>streamcli at work</title>",
            f"<style>{STYLE.format(size=SIZE, seconds=seconds)}",
            *frames,
            "</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#161b22" stroke="#57606a"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _row(number, line, moments):
    """One line as an element; `moments` gets the times at which its parts appear, with a number for each."""
    spans = []
    for (moment, kind), part in groupby(line, lambda piece: (round(piece[0] / MERGED) * MERGED, piece[1])):
        name = moments.setdefault(moment, len(moments))
        styled = f' class="{kind}"' if kind else ""
        text = escape("".join(character for *_, character in part), quote=False)
        spans.append(f'<tspan{styled} style="animation-name:k{name}">{text}</tspan>')
    return f'<text x="{MARGIN}" y="{MARGIN + SIZE + number * LINE}">{"".join(spans)}</text>'


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(svg(record(home)))
