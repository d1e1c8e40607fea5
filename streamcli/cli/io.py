"""Standard streams, files and one-line diagnostics: complete reads and complete writes.

Contract: `write` returns when the kernel has every byte, whatever short writes, non-blocking descriptors and signals
do. It raises OutputError if it cannot write, and ReaderClosedPipe if nobody reads any more. Without a standard error
nothing else changes. Bytes go out as they are: no text layer, no locale, no buffer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import select
import signal
import stat
from typing import TYPE_CHECKING

from streamcli.errors import OutputError, StreamcliError, UsageError, reason
from streamcli.output.terminal import one_line
from streamcli.protocol.secrets import hidden
from streamcli.turns.signals import signals_held

if TYPE_CHECKING:
    from collections.abc import Callable

STDIN, STDOUT, STDERR = 0, 1, 2
# How many seconds standard input may be silent before that is mentioned.
SILENCE = 3.0
# Names of descriptors.
_NAMED = {"-": STDOUT, "/dev/stdin": STDIN, "/dev/stdout": STDOUT, "/dev/stderr": STDERR}
_NUMBERED = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
# What a file name that is not UTF-8 has; strict parsers of JSON do not take it.
_NO_TEXT = re.compile("[\ud800-\udfff]")


class Signalled(BaseException):
    """A signal came that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class ReaderClosedPipe(Signalled):
    """The reader closed the pipe that we write to: the process ends by SIGPIPE, as every filter does."""

    def __init__(self) -> None:
        super().__init__(signal.SIGPIPE)


def _unwritable(name: str, fault: OSError) -> OutputError:
    return OutputError(f"cannot write to {name}: {reason(fault)}")


def _write_counted(fd: int, data: memoryview, counts: list[int]) -> None:
    """Write what fits of `data` and add its count to `counts`, so that no signal's handler runs between the two.

    If one ran and raised there, the count would be lost, and what the kernel has taken would go out twice. Python runs
    handlers between two steps of Python code, and in a call that a signal woke before it had done anything. `extend`,
    `map` and `os.write` are all C: from the write to the list that holds its count there is no step of Python.

    To hold signals back instead would not do: a write of more than there is room for waits for the reader, and a signal
    must end that. Nor would shorter writes: how little never waits is known of pipes alone, and what one network read
    brought goes out in one write.
    """
    counts.extend(map(os.write, (fd,), (data,)))


class Descriptor:
    """An open descriptor. `name` is what messages call it.

    What a write that a signal broke off has left is written before the next one.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self._data = memoryview(b"")
        self._counts: list[int] = []
        self._before = 0

    @property
    def written(self) -> int:
        """How many bytes were written."""
        return self._before + sum(self._counts)

    def write(self, data: bytes) -> None:
        """Write all of `data`, waiting while a non-blocking descriptor is full."""
        left = self._left()
        whole = memoryview(bytes(left) + data if left else data)
        self._before, self._data, self._counts = self.written, whole, []
        while left := self._left():
            try:
                _write_counted(self.fd, left, self._counts)
            except BlockingIOError:
                _wait(self.fd, select.POLLOUT)
            except BrokenPipeError:
                raise ReaderClosedPipe from None
            except OSError as fault:
                raise _unwritable(self.name, fault) from None

    def _left(self) -> memoryview:
        return self._data[sum(self._counts) :]

    def done(self) -> None:
        """Close, because some file systems report only then that a write failed."""
        try:
            self._close()
        except OSError as fault:
            raise _unwritable(self.name, fault) from None

    def failed(self) -> None:
        """Close, if it is still open; what was written stays."""
        with contextlib.suppress(OSError):
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:  # else another descriptor may have its number by now
            os.close(fd)


class StandardError(Descriptor):
    """Standard error, which may be closed or full without any effect on the answer."""

    def write(self, data: bytes) -> None:
        """Write what can be written."""
        with contextlib.suppress(OutputError, ReaderClosedPipe):
            super().write(data)


class ReplacedFile(Descriptor):
    """A file that appears whole or not at all: written as a new file beside it, which takes its name at the end.

    A run that failed leaves FILE as it was and what came as FILE.partial, unless nothing came. What has one of these
    names is replaced, never opened: it may be another run's, a link or a pipe.
    """

    def __init__(self, path: str) -> None:
        super().__init__(-1, path)
        try:
            if path.endswith("/"):  # which the next line would leave out
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._path = os.path.realpath(path)
            self._make()
        except OSError as fault:
            raise _unwritable(self.name, fault) from None

    def _make(self) -> None:
        mode = None
        with contextlib.suppress(OSError):
            mode = os.stat(self._path).st_mode & 0o777
        while self.fd < 0:
            self._own = f"{self._path}.partial.{os.urandom(4).hex()}"
            with contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self.fd = os.open(self._own, flags, 0o666 if mode is None else mode)
        if mode is not None:
            with contextlib.suppress(OSError):
                os.fchmod(self.fd, mode)

    @property
    def would_empty(self) -> bool:
        """Whether a file that holds something would become empty."""
        return not self.written and os.path.exists(self._path) and os.path.getsize(self._path) > 0

    def done(self) -> None:
        """Close the file and give it its name."""
        try:
            os.fsync(self.fd)
            self._close()
            os.replace(self._own, self._path)
        except OSError as fault:
            raise _unwritable(self.name, fault) from None

    def failed(self) -> None:
        """Close FILE.partial, and remove it if it is empty."""
        super().failed()
        with contextlib.suppress(OSError):  # where it cannot have the name it keeps its own
            if self.written:
                os.replace(self._own, f"{self._path}.partial")
            else:
                os.unlink(self._own)


def opened(path: str, *, atomic: bool, note: Callable[[Descriptor], object] = lambda _: None) -> Descriptor:
    """A sink for `path`: a descriptor for /dev/fd/N or -, a device or a pipe, else a file, new or replaced when done.

    `note` is given it before a signal can end the run, so that no file is left behind. Raises OutputError where it
    cannot be opened for writing.
    """
    numbered = _NUMBERED.fullmatch(path)
    number = int(numbered[1]) if numbered else _NAMED.get(path)
    if atomic and number is None and (not os.path.exists(path) or os.path.isfile(path)):
        with signals_held():
            made: Descriptor = ReplacedFile(path)
            note(made)
    else:
        made = Descriptor(_opened_in_place(path, number), path)
        note(made)
    return made


def _opened_in_place(path: str, number: int | None) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666) if number is None else _another(number)
    except OSError as fault:
        raise _unwritable(path, fault) from None


def _another(number: int) -> int:
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as a write would say, but in time
    return os.dup(number)


def standard_streams() -> list[bool]:
    """Which standard streams are open.

    The closed ones become /dev/null, for reading only: no socket or file of ours gets their numbers, and writing to
    them fails.
    """
    found = [_is_open(fd) for fd in (STDIN, STDOUT, STDERR)]
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= STDERR:
        pass
    os.close(fd)
    return found


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def is_device(fd: int) -> bool:
    """Whether `fd` is a device such as /dev/null, and not a pipe or file that somebody filled or meant to fill."""
    return stat.S_ISCHR(os.fstat(fd).st_mode)


def read_stdin(*, timeout: float = 0, silent: Callable[[], None] = lambda: None) -> bytes:
    """Standard input to its end.

    `silent` is called if no first byte comes within SILENCE seconds. Raises UsageError if none comes within `timeout`
    seconds; 0: it waits for ever.
    """
    _await_input(timeout or math.inf, silent)
    try:
        return b"".join(iter(lambda: read(STDIN), b""))
    except OSError as fault:
        raise UsageError(f"cannot read standard input: {reason(fault)}") from None


def _await_input(timeout: float, silent: Callable[[], None]) -> None:
    patience = min(SILENCE, timeout)
    if _wait(STDIN, select.POLLIN, patience):
        return
    if timeout > patience:
        silent()
    if not _wait(STDIN, select.POLLIN, timeout - patience):
        raise UsageError(f"nothing came on standard input for {timeout:g} s: use -I to ignore it")


def read(fd: int) -> bytes:
    """Wait for something to read and return it; b"" at the end. Raises OSError."""
    while True:
        try:
            return os.read(fd, 1 << 20)
        except BlockingIOError:
            _wait(fd, select.POLLIN)


def _wait(fd: int, event: int, seconds: float = math.inf) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(None if seconds == math.inf else seconds * 1000))


def read_file(path: str, what: str) -> bytes:
    """The bytes of a file. Raises UsageError, naming the file and `what` it is, if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as fault:
        raise UsageError(f"cannot read {what} {path}: {reason(fault)}") from None


class Diagnostics:
    """What the command says: on stderr only, a line at a time, `streamcli: kind: text`, without control characters."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self._as_json = as_json
        self.secrets: set[str] = set()
        # A context in which what is drawn on stderr makes way for a line, and a call that draws it again in time.
        self.live: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        self.tick: Callable[[], None] = lambda: None
        # What can be done about an error, once it is known what is asked.
        self.advise: Callable[[StreamcliError], str] = lambda _: ""

    def note(self, text: str) -> None:
        """Say something worth knowing that is not an error; with --quiet, say nothing."""
        if not self.quiet:
            self.line(f"streamcli: {text}")

    def error(self, text: str) -> None:
        """Why the status is not 0."""
        self.line(f"streamcli: error: {text}")

    def fault(self, error: StreamcliError, status: int | None = None) -> None:
        """As `error`, or with --error-format json a JSON object: what a script needs to decide what to do next.

        `status` is the exit status, if it is not the error's own.
        """
        advice = self.advise(error)
        hint = f"; {advice}" if advice else ""
        if not self._as_json:
            self.error(f"{error}{hint}")
            return
        import json  # noqa: PLC0415 - errors are rare, start-ups are not

        # In ASCII, so that it stays JSON: control characters would be made visible.
        evidence = error.evidence(status)
        evidence["message"] = _NO_TEXT.sub("\ufffd", evidence["message"] + hint)
        self._say(json.dumps(evidence, separators=(",", ":")).encode())

    def line(self, text: str) -> None:
        """One line without a prefix."""
        self._say(one_line(text).encode())

    def _say(self, line: bytes) -> None:
        """Write it; if that fails, nothing else changes."""
        with self.live, contextlib.suppress(OSError):
            os.write(STDERR, self.without_secrets(line) + b"\n")

    def without_secrets(self, text: bytes) -> bytes:
        """`text`, every secret in it hidden: a server may have repeated one."""
        return hidden(text, self.secrets)
