"""--offload: a run through the Message Batches API, what is said during it, and how to continue afterwards.

Contract: whatever ends the run, the batches go on at the server, and stderr says how to come back to them. The counts
are one line on a terminal, drawn over itself and removed at the end; elsewhere they are a new line when they change.
Source: streamcli(1), section "Offloading".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamcli.batch.offload import Offload
from streamcli.batch.state import State
from streamcli.errors import StreamcliError

from . import io
from .screen import clock
from .verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamcli.batch.offload import Counts
    from streamcli.batch.results import Results
    from streamcli.batch.source import Source
    from streamcli.batch.state import Part
    from streamcli.batch.statistics import Statistics
    from streamcli.client.client import Client

    from .args import Args
    from .screen import Screen


def run(
    args: Args,
    diagnostics: io.Diagnostics,
    client: Client,
    *,
    source: Source,
    results: Results,
    statistics: Statistics,
    screen: Screen,
) -> None:
    """Have the lines of `source` answered in batches, or with --cancel cancel the batches.

    `screen` shows the counts where that is a terminal. Raises StreamcliError and io.Signalled.
    """
    with State(f"{results.path}.batches", client.endpoint.base_url) as state:
        offload = Offload(
            client,
            source,
            results,
            statistics=statistics,
            state=state,
            note=diagnostics.note,
            show=_teller(diagnostics, screen, statistics),
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
        f"perhaps {_batches(unknown)} from a submission that broke off" if unknown else "",
    ]
    how = "run the same command with --resume to fetch the results, or with --cancel"
    return f"{', '.join(filter(None, stands))}: {how}"


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count} batches"


def _teller(diagnostics: io.Diagnostics, screen: Screen, statistics: Statistics) -> Callable[[Counts], None]:
    """What is told the counts: it draws them, or says them where they changed."""
    said = ""

    def tell(counts: Counts) -> None:
        nonlocal said
        before, said = said, _shown(counts)
        screen.text = lambda: f"{said}  {clock(statistics.elapsed)}"
        screen.keep_drawing(diagnostics)
        if said != before and not screen.shown:
            diagnostics.note(said)

    return tell


def _shown(counts: Counts) -> str:
    requests = ", ".join(f"{count} {kind}" for kind, count in counts.requests.items() if count)
    return f"{counts.ended} of {counts.batches} batches ended" + (f": {requests}" if requests else "")
