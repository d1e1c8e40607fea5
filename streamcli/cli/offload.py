"""Many prompts handed to the Message Batches API: what is said of it while it lasts, and how to go on afterwards.

Contract: whatever ends the run, the batches go on at the server, and stderr says how to come back to them. Counts are
one line on a terminal, drawn over itself and gone in the end; elsewhere a line where they change.
Source: design.md section 4.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import httpx

from streamcli.batch.offload import Offload, State
from streamcli.client.client import Client
from streamcli.errors import StreamcliError
from streamcli.network.proxy import proxy_for
from streamcli.network.transport import own_client

from . import io
from .answer import judge
from .progress import Line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamcli.batch.offload import Counts, Part
    from streamcli.batch.results import Results
    from streamcli.batch.source import Source
    from streamcli.batch.statistics import Statistics
    from streamcli.protocol.request import Endpoint

    from .args import Args


def run(
    args: Args,
    diagnostics: io.Diagnostics,
    endpoint: Endpoint,
    *,
    source: Source,
    results: Results,
    statistics: Statistics,
) -> None:
    """Have the lines of `source` answered by batches, or with --cancel cancel these.

    Raises StreamcliError and io.Signalled.
    """
    proxy = proxy_for(endpoint, named=args.proxy, allow_http=args.allow_http)
    watch = _Watch(diagnostics)
    with (
        own_client(proxy=proxy, ca_file=args.ca_file) as http,
        State(f"{results.path}.batches", endpoint.base_url) as state,
    ):
        offload = Offload(
            _client(args, endpoint, diagnostics, http),
            source,
            results,
            statistics=statistics,
            state=state,
            watch=watch,
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
        finally:
            watch.close()


def _client(args: Args, endpoint: Endpoint, diagnostics: io.Diagnostics, http: httpx.Client) -> Client:
    return Client(
        endpoint=endpoint,
        http_client=http,
        timeout=httpx.Timeout(args.idle_timeout or None, connect=args.connect_timeout or None, pool=None),
        total_timeout=args.timeout or None,
        max_retries=args.retries,
        on_retry=lambda error, wait: diagnostics.note(f"retrying in {wait:.1f} s after: {error}"),
    )


def _how_to_go_on(parts: Sequence[Part]) -> str:
    known = sum(part.id is not None for part in parts)
    how = "the same command with --resume fetches the results, with --cancel cancels"
    what = "1 batch goes" if known == 1 else f"{known} batches go"
    if known == len(parts):
        return f"{what} on at the server: {how}"
    return f"{what} on at the server, and perhaps one more: {how}" if known else f"perhaps a batch goes on there: {how}"


class _Watch:
    """Tells how it goes."""

    def __init__(self, diagnostics: io.Diagnostics) -> None:
        self._diagnostics = diagnostics
        self._began = time.monotonic()
        self._text = ""
        self._line = Line() if os.isatty(io.STDERR) and not diagnostics.quiet else None
        if self._line:
            diagnostics.live, diagnostics.tick = self._line, self._draw

    def note(self, text: str) -> None:
        """Something happened."""
        self._diagnostics.note(text)

    def counts(self, counts: Counts) -> None:
        """The batches were looked at."""
        text = _shown(counts)
        changed, self._text = text != self._text, text
        if self._line:
            self._draw()
        elif changed:
            self._diagnostics.note(text)

    def close(self) -> None:
        """Draw nothing more."""
        if self._line:
            self._diagnostics.tick = lambda: None
            self._line.close()

    def _draw(self) -> None:
        if self._line and self._text:
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            self._line.draw(lambda: f"{self._text}  {minutes}:{seconds:02}")


def _shown(counts: Counts) -> str:
    requests = ", ".join(f"{count} {kind}" for kind, count in counts.requests.items() if count)
    return f"{counts.ended} of {counts.batches} batches ended" + (f": {requests}" if requests else "")
