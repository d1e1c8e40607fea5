"""--offload: a run by way of the Message Batches API, what is said while it lasts, and how to go on afterwards.

Contract: whatever ends the run, the batches go on at the server, and stderr says how to come back to them. The counts
are one line on a terminal, drawn over itself and gone in the end; elsewhere they are a new line when they change.
Source: streamcli(1), section "Offloading".
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streamcli.batch.offload import Offload
from streamcli.batch.state import State
from streamcli.errors import StreamcliError

from . import io
from .verdict import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamcli.batch.offload import Counts
    from streamcli.batch.results import Results
    from streamcli.batch.source import Source
    from streamcli.batch.state import Part
    from streamcli.batch.statistics import Statistics
    from streamcli.client.client import Client

    from .args import Args
    from .progress import Line


def run(
    args: Args,
    diagnostics: io.Diagnostics,
    client: Client,
    *,
    source: Source,
    results: Results,
    statistics: Statistics,
    line: Line | None,
) -> None:
    """Have the lines of `source` answered in batches, or with --cancel cancel the batches.

    The counts are drawn on `line`, if there is one. Raises StreamcliError and io.Signalled.
    """
    with State(f"{results.path}.batches", client.endpoint.base_url) as state:
        offload = Offload(
            client,
            source,
            results,
            statistics=statistics,
            state=state,
            note=diagnostics.note,
            show=_Screen(diagnostics, line).show,
            betas=args.beta,
            judge=judge(args),
            retries=args.retries,
        )
        if args.cancel:
            offload.cancel()
            return
        try:
            offload.run()
        except (StreamcliError, io.Signalled):
            if state.waiting:
                diagnostics.note(_how_to_go_on(state.waiting))
            raise


def _how_to_go_on(parts: Sequence[Part]) -> str:
    ended = sum(part.ended for part in parts)
    running = sum(part.id is not None and not part.ended for part in parts)
    unknown = len(parts) - ended - running
    keeps = "keeps" if running == 1 else "keep"
    stands = [
        f"{_batches(running)} {keeps} running at the server" if running else "",
        f"{_batches(ended)} ended with results to fetch" if ended else "",
        f"perhaps {_batches(unknown)} of a submission that broke off" if unknown else "",
    ]
    how = "run the same command with --resume to fetch the results, or with --cancel"
    return f"{', '.join(filter(None, stands))}: {how}"


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count} batches"


class _Screen:
    """Shows how far the batches are."""

    def __init__(self, diagnostics: io.Diagnostics, line: Line | None) -> None:
        self._note = diagnostics.note
        self._line = line
        self._began = time.monotonic()
        self._text = ""
        diagnostics.tick = self._draw

    def show(self, counts: Counts) -> None:
        text = _shown(counts)
        changed, self._text = text != self._text, text
        if self._line:
            self._draw()
        elif changed:
            self._note(text)

    def _draw(self) -> None:
        if self._line and self._text:
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            self._line.draw(lambda: f"{self._text}  {minutes}:{seconds:02}")


def _shown(counts: Counts) -> str:
    requests = ", ".join(f"{count} {kind}" for kind, count in counts.requests.items() if count)
    return f"{counts.ended} of {counts.batches} batches ended" + (f": {requests}" if requests else "")
