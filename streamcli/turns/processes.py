"""Programs in, what each printed and how it ended out: all at the same time, in one thread.

Contract: a program is run directly, never through a shell, in a session of its own, with nothing of ours but its three
standard streams and the environment given. Whatever ends the wait, a signal handler's exception above all, ends every
program with all its children, and neither a process nor a descriptor is left behind. What a program does wrong is told
by its `End`, never by an exception.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import selectors
import signal
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .signals import signals_held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

# How many bytes of standard error are kept: the last ones.
MAX_ERRORS = 8000
_CHUNK = 1 << 16
# Each program that runs takes four descriptors of the 256 that some systems allow.
_AT_ONCE = 50
# A program that has ended may leave others behind that hold its output open; this is how many seconds they get to end.
_LINGER = 1.0
# How often to look whether a program has ended, where the system cannot tell.
_TICK = 0.02
_LONGEST_WAIT = 3600.0  # the system's clock of a wait is one of 32 bits
# After SIGKILL nothing is waited for but the kernel, unless the program belongs to another user and lives on.
_PATIENCE = (0.0, 0.001, 0.01, 0.1, 0.5)
_LAST_MOMENT = 0.01
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them
_NOT_STARTED = {
    errno.ENOEXEC: "it is not a program; a script begins with #! and its interpreter",
    errno.ENOENT: "it no longer exists, or the interpreter in its first line does not exist",
}


class Job(NamedTuple):
    """What to run, and what it reads."""

    argv: tuple[str, ...]
    input: bytes


class End(NamedTuple):
    """How a program ended: its status, less than 0 for a signal, unless `fault` says why the status does not count."""

    status: int = 0
    output: bytes = b""
    errors: bytes = b""
    fault: str = ""


def run(jobs: Sequence[Job], *, environment: Mapping[str, str], timeout: float | None, max_bytes: int) -> list[End]:
    """How each job ended, in their order."""
    children: list[_Child] = []
    running: list[_Child] = []
    waiting = deque(jobs)
    selector = selectors.PollSelector()  # the one that needs no descriptor itself
    try:
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                child = _Child(selector, timeout, max_bytes)
                running.append(child)
                children.append(child)
                child.start(waiting.popleft(), environment)
            for key, _ in selector.select(min(child.patience() for child in running)):
                key.data()
            done = [child for child in running if child.is_done()]
            _finish(done)
            running = [child for child in running if child not in done]
    finally:
        _finish(running)
    return [child.end() for child in children]


def _finish(children: Sequence[_Child]) -> None:
    """End them and leave nothing of them behind."""
    _kill({pid for child in children for pid in child.to_kill()})  # first: there may be no time for more
    for child in children:
        child.close()


def _kill(leaders: Set[int]) -> None:
    """End programs with all that they started, except what went into a session of its own.

    A program's number is also that of its process group and of its session. No other process gets it before the
    program is reaped and the last one of its group is gone.
    """
    for pid in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    if leaders:  # processes with a group of their own, as those that timeout(1) runs, are still in the session
        _send(signal.SIGKILL, [pid for pid, (_, session) in _processes().items() if session in leaders])


def _processes() -> dict[int, tuple[int, int]]:
    """The parent and the session of each process, on systems where /proc tells."""
    found = {}
    names = os.listdir("/proc") if os.path.exists("/proc/self/stat") else []
    for name in filter(str.isdecimal, names):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            _state, parent, _group, session, *_ = file.read().rpartition(b")")[2].split()
            found[int(name)] = int(parent), int(session)
    return found


def output_of(command: str) -> tuple[int, bytes]:
    """The exit status of a command of the shell, less than 0 for a signal, and what it printed.

    It gets no standard input, but our terminal and standard error, because it may ask for a password. Whatever ends the
    wait ends it with its children.
    """
    pid = 0
    output, printed = os.pipe()
    try:
        with signals_held() as held_before:
            pid = os.posix_spawn(
                "/bin/sh",
                ("sh", "-c", command),
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, printed, 1),
                    *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()),
                ],
                setsigdef=_RESTORED,
                setsigmask=held_before,
            )
            os.close(printed)
        data = b"".join(iter(partial(os.read, output, _CHUNK), b""))
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with signals_held():  # once it is reaped, its number may be another program's
            ended, pid = os.waitpid(pid, 0)[1], 0
    finally:
        if pid:
            _end_with_children(pid)
        os.close(output)
    return os.waitstatus_to_exitcode(ended), data


def _end_with_children(pid: int) -> None:
    """End a program that shares our session with all that it started, after a moment to put the terminal in order."""
    with signals_held():  # what is stopped must not stay so
        tree = {pid}
        stopped: set[int] = set()
        while new := tree - stopped:  # what is stopped starts nothing more
            _send(signal.SIGSTOP, new)
            stopped |= new
            tree |= {child for child, (parent, _) in _processes().items() if parent in tree}
        _send(signal.SIGTERM, tree)
        _send(signal.SIGCONT, tree)
        time.sleep(_LAST_MOMENT)
        _send(signal.SIGKILL, tree)


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class _Child:
    """A program while it runs: what is left to write to it, what came from it, and how long it may go on."""

    def __init__(self, selector: selectors.BaseSelector, timeout: float | None, max_bytes: int) -> None:
        self._selector = selector
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._max_bytes = max_bytes
        self._input = memoryview(b"")
        self._output = bytearray()
        self._errors = bytearray()
        self._fault = ""
        self._pid: int | None = None  # until it is started
        self._status: int | None = None  # until it is reaped
        self._descriptors: list[int] = []  # all that are open here
        self._outputs: set[int] = set()  # those of them that somebody may still write to
        self._tells_its_end = False
        self._has_ended = False

    def start(self, job: Job, environment: Mapping[str, str]) -> None:
        """Run it; where it cannot be started, the fault says why."""
        try:
            self._spawn(job.argv, environment)
        except OSError as fault:
            why = _NOT_STARTED.get(fault.errno or 0) or (fault.strerror or str(fault)).lower()
            self._fault = f"cannot be started: {why}"
            return
        stdin, to, output, stdout, errors, stderr, *ends = self._descriptors
        for fd in (stdin, stdout, stderr):
            self._shut(fd)
        self._input = memoryview(job.input)
        self._outputs = {output, errors}
        self._tells_its_end = bool(ends)
        os.set_blocking(to, False)
        self._watch(to, selectors.EVENT_WRITE, self._feed)
        self._watch(output, selectors.EVENT_READ, self._take_output)
        self._watch(errors, selectors.EVENT_READ, self._take_errors)
        for fd in ends:
            self._watch(fd, selectors.EVENT_READ, self._hear_of_its_end)

    def _spawn(self, argv: tuple[str, ...], environment: Mapping[str, str]) -> None:
        # subprocess.Popen can leave a process behind that nobody knows of, if a signal comes at the wrong moment.
        with signals_held() as held_before:
            for _ in range(3):
                self._descriptors += os.pipe()
            stdin, _, _, stdout, _, stderr = self._descriptors
            own = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, stdout, stderr))]
            self._pid = os.posix_spawn(
                argv[0],
                argv,
                environment,
                file_actions=[*own, *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable())],
                setsid=True,
                setsigdef=_RESTORED,
                setsigmask=held_before,
            )
            if hasattr(os, "pidfd_open"):
                with contextlib.suppress(OSError):  # an old kernel, or a sandbox
                    self._descriptors.append(os.pidfd_open(self._pid))

    def _watch(self, fd: int, event: int, act: Callable[[int], None]) -> None:
        self._selector.register(fd, event, partial(act, fd))

    def _feed(self, fd: int) -> None:
        try:
            written = os.write(fd, self._input[:_CHUNK])
        except BrokenPipeError:  # it does not read the rest
            written = len(self._input)
        self._input = self._input[written:]
        if not self._input:
            self._shut(fd)

    def _take_output(self, fd: int) -> None:
        self._output += self._read(fd)
        if len(self._output) > self._max_bytes:
            self._fault = f"printed more than {self._max_bytes} bytes and was killed"

    def _take_errors(self, fd: int) -> None:
        self._errors += self._read(fd)
        del self._errors[:-MAX_ERRORS]

    def _read(self, fd: int) -> bytes:
        data = os.read(fd, _CHUNK)
        if not data:
            self._outputs.discard(fd)
            self._shut(fd)
        return data

    def _hear_of_its_end(self, fd: int) -> None:
        self._shut(fd)
        self._note_its_end()

    def _note_its_end(self) -> None:
        self._has_ended = True
        self._deadline = min(self._deadline, time.monotonic() + _LINGER)

    def patience(self) -> float:
        """The most seconds to wait before looking at this program again."""
        if self._fault:
            return 0
        most = _LONGEST_WAIT if self._tells_its_end else _TICK
        return max(0, min(most, self._deadline - time.monotonic()))

    def is_done(self) -> bool:
        """Whether there is nothing more to wait for."""
        if not (self._fault or self._tells_its_end or self._has_ended) and self._reap():
            self._note_its_end()
        if self._fault or (self._has_ended and not self._outputs):
            return True
        if time.monotonic() < self._deadline:
            return False
        if not self._has_ended:
            self._fault = f"took longer than {self._timeout:g} s and was killed"
        return True

    def to_kill(self) -> list[int]:
        """The program's number, if something of it may still run that should not."""
        return [self._pid] if self._pid and (self._outputs or not self._has_ended) else []

    def close(self) -> None:
        """Close every descriptor, and reap the program, which has ended or was killed."""
        for fd in list(self._descriptors):
            self._shut(fd)
        self._outputs.clear()
        self._has_ended = True
        for seconds in _PATIENCE:
            time.sleep(seconds)
            if self._pid is None or self._status is not None or self._reap():
                return

    def _reap(self) -> bool:
        assert self._pid  # noqa: S101 - one that could not be started has a fault, and is not asked for
        with signals_held():  # once it is reaped, its number may be another program's
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored: the kernel has reaped it, and its status is lost
                pid, status = self._pid, 0
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._has_ended = True
        return bool(pid)

    def _shut(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)
        with signals_held():
            os.close(fd)
            self._descriptors.remove(fd)

    def end(self) -> End:
        """How it ended, once it is closed."""
        return End(self._status or 0, bytes(self._output), bytes(self._errors), self._fault)


def _inheritable() -> Iterator[int]:
    """The descriptors a program would inherit besides its own: those that we were started with ourselves."""
    most = os.sysconf("SC_OPEN_MAX")  # posix_spawn cannot close one above it, opened under a higher limit
    for fd in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if 2 < fd < most and os.get_inheritable(fd):
                yield fd
