"""--batch: the input, the output, the signals and the terminal around many requests at once.

Contract: whatever is wrong with what was asked for is found before an output is opened or anything is sent. The first
signal ends the run when what is complete is written, with a note on how to go on; a second one ends it at once. Then
the process dies of the signal. On a terminal a line shows how the run goes; elsewhere stderr stays silent unless lines
failed.
Source: streamcli(5), section "BATCHES".
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import resource
import signal
import stat
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.batch.pool import Pool
from streamcli.batch.results import Results
from streamcli.batch.source import Line, Source
from streamcli.batch.statistics import Statistics
from streamcli.client.client import Client
from streamcli.errors import OutputError, StreamcliError, UsageError, reason
from streamcli.network import local
from streamcli.output.terminal import Visible
from streamcli.protocol.jsontext import dumps
from streamcli.turns.signals import ENDING

from . import clients, io, show
from .screen import Screen
from .verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from streamcli.batch.results import Result
    from streamcli.batch.source import Mark
    from streamcli.client.async_client import AsyncClient
    from streamcli.errors import APIError
    from streamcli.protocol.request import Endpoint

    from .args import Args

# How many files a process has open besides the connections of its streams.
_OTHER_FILES = 24


class TokenLimitError(StreamcliError):
    """Lines were not asked, because the others used the tokens of --max-total-tokens."""

    exit_code = 9
    code = "token_limit"


class FailedLinesError(StreamcliError):
    """The run is complete, but some lines failed; its status is the highest of theirs."""

    code = "failed_lines"


def run(
    args: Args,
    are_open: Sequence[bool],
    diagnostics: io.Diagnostics,
    standard_output: io.Descriptor,
    *,
    endpoint: Endpoint,
    defaults: Mapping[str, Any],
    compose: Callable[[str], dict[str, Any]],
    mark: Mark | None,
    reach: Callable[[Client | AsyncClient], None],
) -> int:
    """Ask every line, once `reach` has made the client's address one that responds; returns the highest status.

    Raises StreamcliError, io.Signalled or io.ReaderClosedPipe.
    """
    with contextlib.ExitStack() as stack:
        file, name = _input(str(args.batch), are_open)
        source = Source(stack.enter_context(file), name, defaults, compose, args.lines, mark)
        if not source.check():
            raise UsageError(f"{name} has no prompts")
        # What would be wrong with every request is said once: a missing key, a useless proxy or certificate.
        endpoint.request("POST", "/v1/messages", {**next(source.lines()).params, "stream": True}, betas=args.beta)
        if args.dry_run:
            return _show(source, standard_output)
        client = clients.client(args, endpoint, diagnostics) if args.offload else clients.async_client(args, endpoint)
        output = _output(args, source, standard_output, stack)
        report = io.opened(args.usage_to, atomic=False) if args.usage_to else None
        reach(client)
        # To count costs nothing, and what the Message Batches API takes is another price.
        prices = {} if args.count_tokens or args.offload else args.prices
        statistics = Statistics(source.count, output.recorded, prices)
        screen = Screen(statistics, shown=os.isatty(io.STDERR) and not diagnostics.quiet)
        diagnostics.live = screen.line
        batch = _Batch(args, source, output, statistics, screen, diagnostics)
        try:
            signals = batch.offload(client) if isinstance(client, Client) else asyncio.run(batch.ask(client))
            if not signals:
                output.finish(ordered=not args.unordered)
        except BaseException as fault:
            if isinstance(fault, OutputError) or (isinstance(fault, StreamcliError) and not args.offload):
                batch.say_stopped()
            with contextlib.suppress(OutputError, io.ReaderClosedPipe):  # why the run ended matters more
                _close(statistics, screen, report)
            raise
        _close(statistics, screen, report)
        if args.cancel:
            return 0
        screen.show_table()
        if signals:
            batch.say_stopped()
            raise io.Signalled(signals[0])
        return batch.say_how_it_ended()


def _show(source: Source, standard_output: io.Descriptor) -> int:
    """Write each request in the form of the Message Batches API, secrets hidden."""
    for line in source.lines():
        params = show.without_tokens(line.params)
        standard_output.write(dumps({"custom_id": line.custom_id, "params": params}) + b"\n")
    standard_output.done()
    return 0


def _close(statistics: Statistics, screen: Screen, report: io.Descriptor | None) -> None:
    statistics.stop()
    screen.line.close()
    if report:
        report.write(dumps(statistics.fields()) + b"\n")
        report.done()


def _input(path: str, are_open: Sequence[bool]) -> tuple[BinaryIO, str]:
    """The file of --batch, which can be read twice, and what messages call it."""
    name = "standard input" if path == "-" else path
    if path == "-" and not are_open[io.STDIN]:
        raise UsageError("cannot read standard input: it is closed")
    try:
        file = _kept(io.STDIN, name) if path == "-" else _opened(path)
    except (OSError, ValueError) as fault:
        raise UsageError(f"cannot read {name}: {reason(fault)}") from None
    return file, name


def _opened(path: str) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115 - the caller's
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:
        return _kept(file.fileno(), path)


def _kept(fd: int, name: str) -> BinaryIO:
    """All that can be read from `fd`, in a temporary file, because the input is read twice."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's
    while data := io.read(fd):
        try:
            file.write(data)
            file.flush()
        except OSError as fault:
            why = f"{reason(fault)}; TMPDIR names another directory"
            raise OutputError(f"cannot keep {name} in {tempfile.gettempdir()}: {why}") from None
    return file


def _output(
    args: Args, source: Source, standard_output: io.Descriptor, stack: contextlib.ExitStack
) -> Results | _Stream:
    path = args.output
    if path is None:
        return _Stream(args, standard_output)
    if not args.offload and os.path.exists(f"{path}.batches"):
        raise UsageError(
            f"{path} has lines in batches: continue with --offload --resume, or cancel them with --offload --cancel"
        )
    if path != "-" and (os.path.isfile(path) or not os.path.exists(path)):
        known = args.resume or args.cancel
        holds = "input_tokens" if args.count_tokens else "message"
        results = Results(path, source, resume=known, retry_errors=args.retry_errors, judge=judge(args), holds=holds)
        return stack.enter_context(results)
    if args.resume:
        raise UsageError(f"--resume needs a file to continue, and {path} is not one")
    return _Stream(args, io.opened(path, atomic=False))


class _Stream:
    """Results on a descriptor, which remembers nothing; on a terminal, control characters are usually made visible."""

    def __init__(self, args: Args, descriptor: io.Descriptor) -> None:
        self.recorded = 0
        self.failed = 0
        self.status = 0
        self.on_terminal = os.isatty(descriptor.fd)
        self._makes_visible = self.on_terminal and args.sanitize != "never"
        self._descriptor = descriptor

    def done(self, number: int) -> bool:  # noqa: ARG002 - as Results have it
        return False

    def write(self, results: Sequence[Result]) -> None:
        data = b"".join([result.line for result in results])
        self._descriptor.write(Visible().feed(data.decode()).encode() if self._makes_visible else data)
        self.recorded += len(results)
        self.failed += sum(result.status > 0 for result in results)
        self.status = max(self.status, *(result.status for result in results))

    def finish(self, *, ordered: bool) -> None:  # noqa: ARG002 - as Results have it
        self._descriptor.done()


class _Batch(NamedTuple):
    """One run."""

    args: Args
    source: Source
    output: Results | _Stream
    statistics: Statistics
    screen: Screen
    diagnostics: io.Diagnostics

    def offload(self, client: Client) -> list[int]:
        """Have the lines that are not done answered by the Message Batches API. A signal that ends it is raised."""
        from . import offload  # noqa: PLC0415 - rarely asked for

        if not isinstance(self.output, Results):
            raise UsageError(f"--offload needs a regular file that it can continue, and {self.args.output} is not one")
        offload.run(
            self.args,
            self.diagnostics,
            client,
            source=self.source,
            results=self.output,
            statistics=self.statistics,
            screen=self.screen,
        )
        return []

    async def ask(self, client: AsyncClient) -> list[int]:
        """Ask the lines that are not done; returns the signals that ended that early."""
        args, output = self.args, self.output
        wanted = args.jobs if args.local is None else local.places(args.jobs)
        allowed = _allowed_jobs(wanted)
        if allowed < wanted:
            self.diagnostics.note(f"--jobs is lowered to {allowed}: the limit on open files (ulimit -n) allows no more")
        # httpcore, which is asked for the ways through proxies, tries to import it six times a request; if it is not
        # installed, that is a third of a request's work.
        if importlib.util.find_spec("sniffio") is None:
            sys.modules["sniffio"] = None  # type: ignore[assignment]
        gc.freeze()  # not to search what exists by now for garbage, again and again, saves a tenth
        is_shown = isinstance(output, _Stream) and output.on_terminal
        pool = Pool(
            client,
            self.screen.making_way(output.write) if is_shown else output.write,
            self.statistics,
            jobs=allowed,
            retries=args.retries,
            ordered=not args.unordered,
            counting=args.count_tokens,
            max_total_tokens=args.max_total_tokens,
            betas=args.beta,
            judge=judge(args),
            on_retry=self._say_retry if args.verbose else lambda *_: None,
            on_silence=self._say_silence,
        )
        self.screen.keep_drawing(self.diagnostics)
        with _signals(pool.stop) as caught:
            await pool.run(self.source.lines(), output.done)
        return caught

    def _say_retry(self, line: Line, error: APIError, wait: float) -> None:
        when = f"in {wait:.1f} s" if wait else "when the server has room"
        self.diagnostics.note(f"line {line.number}: retrying {when} after: {error}")

    def _say_silence(self, line: Line, error: APIError, patience: float) -> None:
        self.diagnostics.note(f"no answers now: line {line.number}: {error}; retrying for up to {patience:g} s")

    def say_stopped(self) -> None:
        """Say how far the run came, and how to go on."""
        how = ": run the same command with --resume to continue" if isinstance(self.output, Results) else ""
        self.diagnostics.note(f"stopped after {self.output.recorded} of {self.source.count} lines{how}")

    def say_how_it_ended(self) -> int:
        """Say how many tokens were counted, and why the status is not 0; returns the status."""
        if self.args.count_tokens:
            counted, tokens = self.statistics.succeeded, self.statistics.tokens
            self.diagnostics.note(f"{tokens} input tokens in {counted} of {self.source.count} lines")
        if self.output.failed:
            self._say_failures()
        return self._say_limit() if self.statistics.capped else self.output.status

    def _say_limit(self) -> int:
        left = self.source.count - self.output.recorded
        used = f"{self.statistics.tokens} tokens were used, and --max-total-tokens is {self.args.max_total_tokens}"
        how = "; --resume asks them" if isinstance(self.output, Results) else ""
        status = max(TokenLimitError.exit_code, self.output.status)
        self.diagnostics.fault(TokenLimitError(f"{left} of {self.source.count} lines not asked: {used}{how}"), status)
        return status

    def _say_failures(self) -> None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.statistics.faults.most_common())
        wait = self.statistics.longest_wait
        parts = [
            f"{self.output.failed} of {self.source.count} lines failed{kinds and f': {kinds}'}",
            f"the server says to wait {wait:.0f} s" if wait else "",
            "--resume asks them again" if isinstance(self.output, Results) and self.output.to_ask_again else "",
        ]
        self.diagnostics.fault(FailedLinesError("; ".join(filter(None, parts))), self.output.status)


def _allowed_jobs(jobs: int) -> int:
    """How many of `jobs` connections the process may have, once its limit is raised as far as possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = jobs + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return jobs
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(jobs, max(1, allowed - _OTHER_FILES))


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Have the first ending signal call `stop`, and add it to the list; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in ENDING}
    heard = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    caught: list[int] = []

    def end(number: int) -> None:
        caught.append(number)
        restore(dict.fromkeys(heard, signal.SIG_DFL))
        stop()

    def restore(handlers: Mapping[signal.Signals, Any]) -> None:
        for each, handler in handlers.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)

    for each in heard:
        loop.add_signal_handler(each, end, each)
    try:
        yield caught
    finally:
        if not caught:
            restore(heard)
