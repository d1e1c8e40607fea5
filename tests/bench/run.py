"""Prints the performance table: each row of work, what the peers need for it, what streamcli needs, and the limit.

With `plots` it measures what the README's pictures show and draws them, as plots.py says.

All contenders of a row do the same work against the same server on the same machine in the same minutes, in turns, so
that noise falls on all of them; one turn before the counted ones warms caches and checks what they print. Figures are
medians, with the least and the most in brackets. The peers are installed on first use, each into an environment of its
own under --cache.

Measured is this tree's streamcli, installed anew into such an environment; with --python the one that is installed
beside that Python, by its console script if there is one, else by its module.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import install
import link
import plots
from measure import Commands, WorkError
from rows import COUNTS, PLOTTED_LINK, Bench, Limit, Row, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).absolute().parent
CACHE = HERE.parents[1] / "build" / "bench"

Samples = dict[str, list[float]]

_VALUES = (statistics.median, min)


def main() -> None:
    options = parsed_options()
    options.cache.mkdir(parents=True, exist_ok=True)
    found = install.install(options.cache)
    python = options.python or install.streamcli(options.cache)
    print_machine(found)
    with ExitStack() as stack:
        port = stack.enter_context(server())
        url = f"http://127.0.0.1:{port}"
        commands = Commands(options.cache, environment(options.cache, url))
        bench = Bench(commands, found, url, python, stack)
        if options.what == "plots":
            keep_plots(bench, options.runs, found)
            return
        say("| work | peers | streamcli | limit | holds |\n|---|---|---|---|---|")
        kept = [print_row(rows()[name](bench), bench.found, options.runs) for name in chosen(options.rows)]
    say(f"\nload average at the end: {os.getloadavg()[0]:.1f}")
    sys.exit(0 if all(kept) or not options.check else 1)


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(rows())
    parser.add_argument("what", nargs="?", choices=["table", "plots"], default="table")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--runs", type=int, default=5, help="counted turns of each row (%(default)s)")
    parser.add_argument("--cache", type=_absolute, default=CACHE, help="where the peers live (build/bench)")
    parser.add_argument("--python", type=_absolute, help="whose streamcli to measure (its own environment's)")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is missed")
    return parser.parse_args()


def chosen(names: list[str]) -> list[str]:
    """Those of the rows that this machine can have."""
    if not link.is_possible():
        sys.stderr.write("bench: the table goes without links that take time: they need root, ip and /dev/net/tun\n")
        return [name for name in names if not name.startswith("link")]
    return names


def keep_plots(bench: Bench, runs: int, found: dict[str, Path]) -> None:
    """Measure what the plots show, keep it and draw it."""
    if not link.is_possible():
        sys.exit("bench: the plots need links that take time: root, ip and /dev/net/tun")
    kept = {
        "date": f"{datetime.now(UTC):%-d %B %Y}",
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release().partition('-')[0]}",
        "versions": [bench.version(), f"Python {platform.python_version()}", *_plotted(install.versions(found))],
        "runs": runs,
        "deltas": {count: medians(bench.deltas(count), found, runs) for count in COUNTS},
        "link": {"milliseconds": PLOTTED_LINK, "runs": medians(bench.link(PLOTTED_LINK), found, runs)},
    }
    plots.KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    plots.draw(json.loads(plots.KEPT.read_text()))


def medians(row: Row, found: dict[str, Path], runs: int) -> dict[str, dict[str, float]]:
    """For each contender the median, the least and the most of a row."""
    say(row.work)
    samples, _ = measured(row, found, runs)
    ways = {"median": statistics.median, "least": min, "most": max}
    return {name: {way: round(of(values), 1) for way, of in ways.items()} for name, values in samples.items()}


def _plotted(versions: list[str]) -> list[str]:
    """One by one, without that of the decoder, which is in no plot."""
    each = [version for together in versions for version in together.split("; ")]
    return [version for version in each if not version.startswith("eventsource-parser")]


def _processor() -> str:
    """The name of this machine's processor, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _absolute(path: str) -> Path:
    """Commands run in another folder; links stay, because an environment's Python is one."""
    return Path(path).absolute()


def environment(cache: Path, url: str) -> dict[str, str]:
    """Small, the same for all; what python compiles may be kept, as it is where people install it."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(cache),
        "LANG": "C.UTF-8",
        "LLM_USER_PATH": str(cache / "llm-home"),
        "ANTHROPIC_API_KEY": "bench",
        "ANTHROPIC_BASE_URL": f"{url}/instant",
    }


@contextmanager
def server() -> Iterator[int]:
    """The port of a server in a process of its own."""
    command = [sys.executable, HERE / "server.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield int(process.stdout.readline())
        process.stdin.close()


def print_machine(found: dict[str, Path]) -> None:
    say(f"{platform.platform()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    say(f"Python {platform.python_version()}; {'; '.join(install.versions(found))}\n")


def print_row(row: Row, found: dict[str, Path], runs: int) -> bool:
    samples, faults = measured(row, found, min(runs, row.most_runs))
    statistics = {name: figure(name, values) for name, values in samples.items()} | faults
    ours, peers = ([statistics[c.name] for c in row.contenders if c.ours is side] for side in (True, False))
    verdicts = [verdict(limit, samples) for limit in row.limits]
    cells = (
        f"{row.work}, {row.unit}",
        "; ".join(peers) or "-",
        "; ".join(ours),
        "; ".join(map(str, row.limits)),
        "; ".join(verdicts),
    )
    say(f"| {' | '.join(cells)} |")
    return not any(text.startswith("NO") for text in verdicts)


def measured(row: Row, found: dict[str, Path], runs: int) -> tuple[Samples, dict[str, str]]:
    """The figures of every contender, taken in turns, and for each that has none the reason."""
    samples: Samples = {}
    faults: dict[str, str] = {}
    for turn in range(runs + 1):
        for contender in row.contenders:
            if contender.name in faults:
                continue
            absent = [name for name in contender.needs if name not in found]
            if absent:
                faults[contender.name] = f"{contender.name}: no {absent[0]}"
                continue
            try:
                value = contender.measure()
            except (WorkError, OSError, ValueError, subprocess.SubprocessError) as fault:
                faults[contender.name] = f"{contender.name} failed"
                samples.pop(contender.name, None)
                sys.stderr.write(f"bench: {contender.name}: {fault}\n")
                continue
            if turn:
                samples.setdefault(contender.name, []).append(value)
    return samples, faults


def figure(name: str, values: list[float]) -> str:
    return f"{name} **{short(statistics.median(values))}** ({short(min(values))}..{short(max(values))})"


def short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def verdict(limit: Limit, samples: Samples) -> str:
    """Whether the limit holds, by the medians, and how far; the same by the least figures, where noise is smallest."""
    if limit.subject not in samples or (limit.peer and limit.peer not in samples):
        return "not measured"
    median, least = (limit.stand(value(samples[limit.subject]), _of_peer(limit, samples, value)) for value in _VALUES)
    return f"{'yes' if median <= 1 else 'NO'} ({limit.shown(median)}, least {limit.shown(least)})"


def _of_peer(limit: Limit, samples: Samples, value: Callable[[list[float]], float]) -> float:
    return value(samples[limit.peer]) if limit.peer else 1


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
