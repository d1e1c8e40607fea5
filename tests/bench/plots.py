"""What the bench measured, kept in docs/speed.json, as the README's pictures: docs/speed-deltas.svg and speed-link.svg.

`run.py plots` measures, keeps and draws; `python tests/bench/plots.py` draws anew what is kept. The text is text, and
its colours are those of the reader's theme.
"""

from __future__ import annotations

import json
import math
import textwrap
from html import escape
from pathlib import Path

DOCS = Path(__file__).absolute().parents[2] / "docs"
KEPT = DOCS / "speed.json"
OURS = "streamcli"
# What the contenders are called where there is no table to explain them.
NAMES = {"script": "httpx + httpx-sse", "SDK": "Python SDK", "curl|sed|jq": "curl | sed | jq"}
# In the order of the table; for light and dark themes.
COLOURS = {
    OURS: ("#c9260c", "#ff7b5c"),
    "bare httpx": ("#6e7781", "#8b949e"),
    "script": ("#0969da", "#58a6ff"),
    "Node SDK": ("#1a7f37", "#3fb950"),
    "curl|sed|jq": ("#9a6700", "#d29922"),
    "curl": ("#9a6700", "#d29922"),
    "SDK": ("#8250df", "#bc8cff"),
    "llm": ("#bf3989", "#f778ba"),
}
WIDTH, LEFT, RIGHT, TOP, LINE = 780, 70, 210, 64, 17
PLOT_HEIGHT, BAR, GAP = 300, 22, 16
FOOT_COLUMNS = 124
NO_BREAK = "\N{NO-BREAK SPACE}"


def pictures(kept: dict) -> dict[str, str]:
    """The pictures, by the names of their files."""
    return {"speed-deltas.svg": _deltas(kept), "speed-link.svg": _link(kept)}


def draw(kept: dict) -> None:
    for name, picture in pictures(kept).items():
        (DOCS / name).write_text(picture)


def _deltas(kept: dict) -> str:
    counts = [int(count) for count in kept["deltas"]]
    rows = [{name: values["median"] / 1000 for name, values in row.items()} for row in kept["deltas"].values()]
    lines = {
        name: [(count, row[name]) for count, row in zip(counts, rows, strict=True) if name in row] for name in rows[-1]
    }
    x = _scale(counts[0], counts[-1], LEFT, WIDTH - RIGHT)
    seconds = [value for row in rows for value in row.values()]
    ticks = _ticks(min(seconds), max(seconds))
    y = _scale(ticks[0], ticks[-1], TOP + PLOT_HEIGHT, TOP)
    parts = [_horizontal(y(tick), f"{tick:g} s") for tick in ticks]
    parts += [_text(x(count), TOP + PLOT_HEIGHT + 20, f"{count:,}", "middle") for count in counts]
    parts.append(_text(x(counts[0]), TOP + PLOT_HEIGHT + 38, "text deltas in the answer"))
    places = _apart({name: y(line[-1][1]) for name, line in lines.items()})
    for name, line in sorted(lines.items(), key=lambda item: item[0] == OURS):
        points = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in line)
        parts.append(f'<polyline class="{_class(name)}" points="{points}"/>')
        parts += [
            f'<circle class="{_class(name)}" cx="{x(count):.1f}" cy="{y(value):.1f}" r="3"/>' for count, value in line
        ]
        label = f"{NAMES.get(name, name)} {_short(line[-1][1])} s"
        parts.append(_text(WIDTH - RIGHT + 12, places[name] + 4, label, of=name))
    title = "A whole run, by the number of deltas in an answer that is all there at once"
    return _picture(title, "seconds, less is better; both axes are logarithmic", parts, TOP + PLOT_HEIGHT + 44, kept)


def _link(kept: dict) -> str:
    row = dict(sorted(kept["link"]["runs"].items(), key=lambda item: item[1]["median"]))
    trips = 3 * kept["link"]["milliseconds"]
    left = LEFT + 90
    most = max(values["median"] for values in row.values())
    parts, top = [], TOP + 18

    def x(value: float) -> float:
        return left + value / most * (WIDTH - left - 80)

    bottom = top + len(row) * (BAR + GAP)
    for number, (name, values) in enumerate(row.items()):
        at = top + number * (BAR + GAP)
        width = x(values["median"]) - left
        parts.append(_text(left - 10, at + BAR / 2 + 5, NAMES.get(name, name), "end", of=name))
        parts.append(f'<rect class="{_class(name)}" x="{left}" y="{at}" width="{width:.1f}" height="{BAR}" rx="2"/>')
        parts.append(_text(x(values["median"]) + 8, at + BAR / 2 + 5, f"{_short(values['median'])} ms", of=name))
    parts.append(f'<path class="grid" d="M{x(trips):.1f} {top - 6}V{bottom - GAP + 6}"/>')
    parts.append(_text(x(trips), top - 12, f"three round trips: {trips} ms", "middle"))
    title = f"A whole run of a short answer, over TLS and a round trip of {kept['link']['milliseconds']} ms"
    return _picture(title, "milliseconds, less is better", parts, bottom, kept)


def _picture(title: str, subtitle: str, parts: list[str], bottom: float, kept: dict) -> str:
    said = [kept["machine"], *kept["versions"], kept["date"]]
    foot = textwrap.wrap("; ".join(each.replace(" ", NO_BREAK) for each in said), FOOT_COLUMNS, break_on_hyphens=False)
    for number, line in enumerate(foot):
        parts.append(f'<text class="foot" x="16" y="{bottom + 26 + number * 15:g}">{escape(line)}</text>')
    height = bottom + 26 + len(foot) * 15
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_style()}</style>",
        f'<text class="title" x="16" y="24">{escape(title)}</text>',
        _text(16, 44, f"{subtitle}; medians of {kept['runs']} runs"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _style() -> str:
    rules = [
        'text{font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#57606a}',
        f".title{{font-size:15px;font-weight:600;fill:#1f2328}}.foot{{font-size:11px}}.{_class(OURS)}{{font-weight:700}}",
        f"polyline{{fill:none;stroke-width:2}}polyline.{_class(OURS)}{{stroke-width:3.5}}",
        ".grid{stroke:#8c959f;stroke-opacity:.45;fill:none}",
    ]
    light, dark = (
        [
            f"polyline.{_class(name)}{{stroke:{pair[theme]}}}:not(polyline).{_class(name)}{{fill:{pair[theme]}}}"
            for name, pair in COLOURS.items()
        ]
        for theme in (0, 1)
    )
    dark += ["text{fill:#9da7b3}.title{fill:#f0f6fc}"]
    return "\n".join([*rules, *light, "@media(prefers-color-scheme:dark){", *dark, "}"])


def _text(x: float, y: float, text: str, anchor: str = "start", *, of: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f"<text {place}" + (f' class="{_class(of)}"' if of else "") + f">{escape(text)}</text>"


def _class(name: str) -> str:
    return "".join(character for character in name if character.isalnum())


def _horizontal(y: float, label: str) -> str:
    return f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>' + _text(LEFT - 8, y + 4, label, "end")


def _scale(least: float, most: float, start: float, end: float):
    """A logarithmic one, from values to pixels."""
    return lambda value: start + math.log(value / least) / math.log(most / least) * (end - start)


def _ticks(least: float, most: float) -> list[float]:
    """Round values from below the least to above the most."""
    steps = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
    first = max(number for number, step in enumerate(steps) if step <= least)
    last = min(number for number, step in enumerate(steps) if step >= most)
    return steps[first : last + 1]


def _apart(places: dict[str, float]) -> dict[str, float]:
    """Where labels go that belong to these places, from the lowest up, a line apart each."""
    apart: dict[str, float] = {}
    free = math.inf
    for name, place in sorted(places.items(), key=lambda item: -item[1]):
        free = apart[name] = min(place, free - LINE)
    return apart


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    draw(json.loads(KEPT.read_text()))
