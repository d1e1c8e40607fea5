"""The real command as a process: run to its end, or watched step by step, on pipes, on a terminal, in a namespace.

Nothing here sleeps to be lucky: what a test needs to have happened is waited for, at most PATIENCE seconds.
"""

import array
import contextlib
import fcntl
import functools
import inspect
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from server import PATIENCE, Listener, Server
from starter import start

COMMAND = [sys.executable, "-m", "streamcli"]


def each(*values, **named):
    """A decorator: the test for each of the cases, side by side, for most of a command's time is its start.

    A case is what the test's positional-only parameters get, a tuple where they are several. Those behind them are
    fixtures, which the cases share.
    """
    table = {repr(value): value for value in values} | named

    def decorate(test):
        signature = inspect.signature(test)
        fixtures = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_ONLY]

        @functools.wraps(test)
        def side_by_side(**given):
            with ThreadPoolExecutor(8) as pool:
                results = {
                    name: pool.submit(test, *(case if isinstance(case, tuple) else (case,)), **given)
                    for name, case in table.items()
                }
            failures = []
            for name, result in results.items():
                if failure := result.exception():
                    failure.add_note(f"in the case {name}")
                    failures.append(failure)
            if len(failures) > 1:
                raise BaseExceptionGroup(f"{len(failures)} of {len(results)} cases", failures)
            for failure in failures:
                raise failure

        side_by_side.__signature__ = signature.replace(parameters=fixtures)
        return side_by_side

    return decorate


class Ended(NamedTuple):
    """How a command ended. `status` is negative for the signal it died of."""

    status: int
    out: bytes
    err: str

    @property
    def error(self):
        """What the one line on standard error says after `streamcli: error: `."""
        line, end, rest = self.err.partition("\n")
        assert line.startswith("streamcli: error: "), self.err
        assert (end, rest) == ("\n", ""), self.err
        return line.removeprefix("streamcli: error: ")


def streamcli(*argv, stdin=subprocess.DEVNULL, within=PATIENCE, **options):
    """Run the command to its end, which comes within so many seconds; `stdin` may be bytes."""
    given = stdin if isinstance(stdin, bytes) else None
    with Running(*argv, stdin=stdin if given is None else subprocess.PIPE, **options) as running:
        if given is not None:
            running.give(given)
        return running.end(within)


def ask(target, *argv, **options):
    """Ask a server, or one that gives this answer; once only, because most faults would just be repeated."""
    if isinstance(target, Server):
        return streamcli(*_question(target, argv), **options)
    with Server(target) as server:
        return ask(server, *argv, **options)


def asking(server, *argv, **options):
    """As `ask`, to watch."""
    return Running(*_question(server, argv), **options)


def _question(server, argv):
    return ["--base-url", server.url, "--retries", "0", "-I", *argv, "hello"]


def environment(**changes):
    """This process's environment with `changes`; None takes a name away."""
    changed = {**os.environ, **changes}
    return {name: value for name, value in changed.items() if value is not None}


def alone(**variables):
    """The changes that leave nothing in the environment but these variables."""
    return dict.fromkeys(os.environ) | variables


class Running:
    """The command while it runs. What it writes is only read where a test waits for it.

    `prefix` is a command that becomes ours, `command` what stands in for ours.
    """

    def __init__(self, *argv, env=None, stdin=subprocess.DEVNULL, prefix=(), command=COMMAND, **options):
        options = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        self.process = start([*prefix, *command, *argv], env=environment(**(env or {})), **options)
        self.pid = self.process.pid
        self._read = {stream: b"" for stream in (self.process.stdout, self.process.stderr) if stream}

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, *self._read):
            if stream:
                stream.close()

    @property
    def out(self):
        return self._read.get(self.process.stdout, b"")

    @property
    def err(self):
        return self._read.get(self.process.stderr, b"").decode()

    def until_out(self, wanted):
        """Read standard output until it holds `wanted`."""
        while wanted not in self.out:
            assert self._read_some([self.process.stdout], PATIENCE), f"ended without it: {self._read}"

    def until_err(self, wanted):
        """Read standard error until it holds `wanted`."""
        while wanted not in self.err:
            assert self._read_some([self.process.stderr], PATIENCE), f"ended without it: {self._read}"

    def _read_some(self, streams, patience):
        """Read what is there of the streams; returns those that have not ended."""
        ready, _, _ = select.select(streams, [], [], max(0, patience))
        assert ready, f"still running, having written {self._read}"
        ended = set()
        for stream in ready:
            data = os.read(stream.fileno(), 1 << 20)
            self._read[stream] += data
            if not data:
                ended.add(stream)
        return [stream for stream in streams if stream not in ended]

    def give(self, data):
        """Give `data` on standard input, from a thread, and end it there."""

        def feed():
            view = memoryview(data)
            with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
                while view:
                    view = view[pipe.write(view) :]

        threading.Thread(target=feed).start()

    def has_taken(self):
        """Whether the command read all that was given on standard input so far."""
        return held_by(self.process.stdin.fileno()) == 0

    def until_stuck(self):
        """Wait until the command waits for the reader of a pipe that it writes to."""

        def is_stuck():
            with open(f"/proc/{self.pid}/wchan") as place:
                return "pipe_write" in place.read()

        until(is_stuck)

    def until_stopped(self):
        """Wait until a signal has stopped the command."""

        def is_stopped():
            with open(f"/proc/{self.pid}/stat") as state:
                return state.read().rpartition(")")[2].split()[0] == "T"

        until(is_stopped)

    def signal(self, number):
        self.process.send_signal(number)

    def end(self, within=PATIENCE):
        """Read what is left until the command ends, within so many seconds."""
        until_ = time.monotonic() + within
        streams = list(self._read)
        while streams:
            streams = self._read_some(streams, until_ - time.monotonic())
        status = self.process.wait(max(0.1, until_ - time.monotonic()))
        return Ended(status, self.out, self.err)


def until(met):
    """Wait until `met()` is true."""
    late = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < late, "waited in vain"
        time.sleep(0.005)


def shell(script):
    """A prefix: what a shell does to itself before it becomes the command.

    Where files are limited Python would compile modules in part, and all later starts would find them so.
    """
    no_files = "export PYTHONDONTWRITEBYTECODE=1; " if "ulimit -f" in script else ""
    return ["sh", "-c", f'{no_files}{script}; exec "$@"', "sh"]


# Does nothing, but a command with a prefix is never a child of the keeper.
TRULY = ["env"]
# Enough for an honest answer, not for one that is collected or unpacked.
LITTLE_MEMORY = shell(f"ulimit -v {300 << 10}")


class Terminal(Running):
    """The command on a terminal of its own: standard input, output and error, unless an option says otherwise."""

    def __init__(self, *argv, **options):
        self.master, slave = pty.openpty()
        self.shown = b""
        streams = {"stdin": slave, "stdout": slave, "stderr": slave} | options
        super().__init__(*argv, terminal=True, **streams)
        os.close(slave)

    def __exit__(self, *exc_info):
        super().__exit__(*exc_info)
        self.hang_up()

    def hang_up(self):
        """Close the window."""
        if self.master is not None:
            os.close(self.master)
            self.master = None

    def type(self, data):
        os.write(self.master, data)

    def until_shown(self, wanted):
        """Read the terminal until it shows `wanted`."""
        while wanted not in self.shown:
            assert self._see(PATIENCE), f"ended without it: {self.shown}"

    def end(self, within=PATIENCE):
        """Read the terminal until the command ends; `out` is all it showed, with plain line ends."""
        until_ = time.monotonic() + within
        while self.master is not None and self._see(until_ - time.monotonic()):
            pass
        ended = super().end(until_ - time.monotonic())
        return ended._replace(out=self.shown.replace(b"\r\n", b"\n") or ended.out)

    def _see(self, patience):
        """Read what is there; returns whether there may be more."""
        assert select.select([self.master], [], [], max(0, patience))[0], f"still running, having shown {self.shown}"
        try:
            self.shown += os.read(self.master, 65536)
        except OSError:  # nobody has the other side any more
            return False
        return True


# Pipes


def held_by(fd):
    """How many bytes wait in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


@contextlib.contextmanager
def small_pipe(flags=0):
    """The two ends of a pipe that is full after one page."""
    reader, writer = os.pipe2(os.O_CLOEXEC | flags)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reader, "rb", buffering=0) as reads, os.fdopen(writer, "wb", buffering=0) as writes:
        yield reads, writes


def until_full(pipe):
    """Wait until nothing more goes into a pipe, whose reading end this is."""
    writer = os.open(f"/proc/self/fd/{pipe.fileno()}", os.O_WRONLY)
    try:
        until(lambda: held_by(pipe.fileno()) and not select.select([], [writer], [], 0)[1])
    finally:
        os.close(writer)


def read_all(pipe):
    """What comes out of a pipe until its end."""
    return b"".join(iter(lambda: os.read(pipe.fileno(), 1 << 16), b""))


# Namespaces


def bound(files):
    """A prefix that shows the command other files: a path there to a path here."""
    mounts = " && ".join(f"mount --bind {here} {there}" for there, here in files.items())
    return allowed(["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"])


def allowed(prefix):
    """`prefix`, if a command can run under it here; else the test is skipped."""
    if not shutil.which(prefix[0]) or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{' '.join(prefix[:2])} is not allowed here")
    return prefix


def as_nobody_known():
    """A prefix under which the command has a user id that no account has; else the test is skipped."""
    prefix = allowed(["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"])
    if subprocess.run([*prefix, *COMMAND, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("the package is not readable for other users")
    return prefix


# Peers that are no servers


@contextlib.contextmanager
def full_backlog():
    """The port of a listener that answers no more connects."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            yield port


def free_port():
    """A port for a server that has to be told one; until it listens, it may be another's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def closed_port():
    """A port nobody listens on, nor anybody else gets meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def is_connecting(port):
    """Whether somebody's SYN to `port` waits for an answer."""
    with open("/proc/net/tcp") as table:
        return any(f"0100007F:{port:04X} 02 " in line for line in table)


class Mute(Listener):
    """Accepts, listens and never says a word."""

    def __init__(self):
        self.heard = threading.Event()
        self.closed = threading.Event()
        super().__init__()

    def handle(self, connection, _number):
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                self.heard.set()
        self.closed.set()


@contextlib.contextmanager
def silent_resolver(folder):
    """A prefix under which names are looked up with a server that answers nothing, and an event: it was asked."""
    address = "127.99.99.99"
    (folder / "resolv.conf").write_text(f"nameserver {address}\n")
    prefix = bound({"/etc/resolv.conf": folder / "resolv.conf"})
    asked = threading.Event()

    def listen():
        with contextlib.suppress(OSError):
            while server.recv(512) != b"stop":
                asked.set()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind((address, 53))
        except OSError:
            pytest.skip("port 53 is not to be had here")
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield prefix, asked
        finally:
            server.sendto(b"stop", (address, 53))
            thread.join()
