"""A process that has imported everything already and forks a child for each start, for most of a start is imports.

Contract: a child is as a process that Python was started for, in all that the command can tell: words, environment (C's
too), working directory, umask, descriptors, streams, signals, process group, terminal, and how it ends. It is a child
of this process; who asked is told its number and its end, over a connection for it alone, and where that closes first
the child is killed. Two things are the keeper's: the seed of the hashes, and cmdline and environ in /proc. And for the
launcher it leads a process group, so that a signal to the shell's comes once. What else would not be as it is in a new
process is refused, by `can_be_forked` and `inherited`.

    python keeper.py SOCKET    serves there until its standard input ends; returns at once

A request is one packet, with the descriptors and a marshalled mapping of `fds`, their numbers in the child, and

    words, environment, cwd    in bytes; left out, they are those of the process that asks, which is the launcher
    terminal                   whether standard input becomes the terminal of a session of its own

The answers are numbers of four bytes: the child's, with a descriptor for it, or 0 for a refusal; then its exit code.
"""

import contextlib
import fcntl
import gc
import importlib
import io
import marshal
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import sys
import termios
import types
from typing import NamedTuple

NUMBER = struct.Struct("=i")
LARGEST = 1 << 17  # bytes of a packet
# What the loader, the C library, OpenSSL and Python look at only when a process starts.
AT_START = ("GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON", "TZ")
# Every Python ignores the first two, whoever started it; 32 and 33 are glibc's own, which its posix_spawn ignores.
_IGNORED = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | 3 << 31
_INHERITED = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
# What the command may import, beside its own modules.
_IMPORTED = ("anyio.to_thread", "asyncio", "difflib", "email.utils", "encodings.idna", "httpcore", "json", "tomllib")
_IMPORTED += ("anyio._backends._asyncio", "click._textwrap")  # at first use


def can_be_forked(words, environment):
    """Whether a child does: a module or a program's text is to run, and nothing is said to who starts Python."""
    program = len(words) > 2 and words[0] == os.fsencode(sys.executable) and words[1] in {b"-m", b"-c"}
    return program and not any(os.fsdecode(name).startswith(AT_START) for name in environment)


def inherited(pid):
    """What a process has of who started it, except for what a request says."""
    status = _status(pid)
    ignored = int(status["SigIgn"], 16) | _IGNORED
    links = ["root", *(f"ns/{name}" for name in sorted(os.listdir(f"/proc/{pid}/ns")))]
    places = [os.readlink(f"/proc/{pid}/{link}") for link in links]
    with open(f"/proc/{pid}/limits") as limits:
        return [os.getsid(pid), ignored, limits.read(), *map(status.get, _INHERITED), *places]


def _status(pid):
    with open(f"/proc/{pid}/status") as lines:
        return dict(line.rstrip("\n").split(":\t", 1) for line in lines)


class Start(NamedTuple):
    """`group` is whether it has a process group of its own, `fds` has its descriptors by their numbers there."""

    words: list
    environment: dict
    cwd: bytes
    umask: int
    terminal: bool
    group: bool
    fds: dict


def main(address):
    """Serve at the address; returns in a process of its own, and there only in a child, which is what it is to be."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    if os.fork():  # who waits for any child of his does not find the keeper
        os._exit(0)
    sys.path[0] = os.path.dirname(os.path.dirname(__file__))
    _load()
    _run(Keeper(listener).serve())


def _load():
    package = importlib.import_module("streamcli")
    modules = [module.name for module in pkgutil.walk_packages(package.__path__, "streamcli.")]
    for name in (*modules, *_IMPORTED):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child that collects neither touches nor so copies what there is by now


# The keeper


class Child(NamedTuple):
    pid: int
    fd: int
    connection: socket.socket


class Keeper:
    """Forks for each request until standard input ends, and buries who ends."""

    def __init__(self, listener):
        self._listener = listener
        self._own = inherited(os.getpid())
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C is for the others
        self._children = set()
        self._poll, self._on = select.poll(), {}
        self._watch(listener.fileno(), self._accept)
        self._watch(0, self._end)

    def serve(self):
        """Returns in each child, with what it is to run."""
        while True:
            for fd, _ in self._poll.poll():
                words = self._on[fd]() if fd in self._on else None
                if words:
                    return words

    def _watch(self, fd, action):
        self._on[fd] = action
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd):
        if self._on.pop(fd, None):
            self._poll.unregister(fd)

    def _accept(self):
        connection, _ = self._listener.accept()
        start = self._start(connection)
        if not start:
            _tell(connection, 0)
            connection.close()
            return None
        pid = os.fork()
        if not pid:
            for used in (self._listener, connection, *(child.connection for child in self._children)):
                used.detach()  # else its number, which may be another's then, would be closed with it
            _become(start, self._mask)
            return start.words
        for fd in start.fds.values():
            os.close(fd)
        child = Child(pid, os.pidfd_open(pid), connection)
        _tell(connection, pid, child.fd)
        self._children.add(child)
        self._watch(child.fd, lambda: self._bury(child))
        self._watch(connection.fileno(), lambda: self._kill(child))
        return None

    def _start(self, connection):
        """What is asked for; None where a child cannot be that."""
        packet, fds, *_ = socket.recv_fds(connection, LARGEST, 64)
        asker, *_ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        with contextlib.suppress(OSError, EOFError):  # where who asked is no more
            request = marshal.loads(packet)
            by_launcher = "words" not in request
            request = (_of(asker) if by_launcher else {}) | request
            words, environment = request["words"], request["environment"]
            if can_be_forked(words, environment) and inherited(asker) == self._own:
                cwd, umask = request["cwd"] or f"/proc/{asker}/cwd", int(_status(asker)["Umask"], 8)
                numbered = dict(zip(request["fds"], fds, strict=True))
                return Start(words, environment, cwd, umask, request["terminal"], by_launcher, numbered)
        for fd in fds:
            os.close(fd)
        return None

    def _bury(self, child):
        self._children.remove(child)
        self._unwatch(child.fd)
        self._unwatch(child.connection.fileno())
        _, status = os.waitpid(child.pid, 0)
        _tell(child.connection, os.waitstatus_to_exitcode(status))
        child.connection.close()
        os.close(child.fd)

    def _kill(self, child):
        self._unwatch(child.connection.fileno())
        signal.pidfd_send_signal(child.fd, signal.SIGKILL)

    def _end(self):
        for child in self._children:
            signal.pidfd_send_signal(child.fd, signal.SIGKILL)
        os._exit(0)


def _tell(connection, number, *fds):
    with contextlib.suppress(OSError):  # nobody listens any more
        socket.send_fds(connection, [NUMBER.pack(number)], fds)


def _of(launcher):
    """What the launcher was started as, as a request."""
    words, variables = (_strings(f"/proc/{launcher}/{name}") for name in ("cmdline", "environ"))
    # In front are Python's name and options, the launcher's and the address.
    words = [os.fsencode(sys.executable), *words[4:]]
    environment = dict(variable.split(b"=", 1) for variable in variables)
    return {"words": words, "environment": environment, "cwd": b"", "terminal": False}


def _strings(path):
    with open(path, "rb") as file:
        return file.read().split(b"\0")[:-1]


# The child

# The variables that Python itself sets, as it does where there is no locale.
_GIVEN = {variable.split(b"=", 1)[0] for variable in _strings("/proc/self/environ")}
_ADDED = {name: value for name, value in os.environb.items() if name not in _GIVEN}


def _become(start, mask):
    """Be as a new process."""
    if start.terminal:
        os.setsid()
    elif start.group:
        os.setpgid(0, 0)
    os.chdir(start.cwd)
    os.umask(start.umask)
    _place(start.fds)
    if start.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.environ.clear()
    os.environb.update(start.environment | _ADDED)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = (
        _stream(0, "r", sys.stdin),
        _stream(1, "w", sys.stdout),
        _stream(2, "w", sys.stderr),
    )
    sys.orig_argv = [os.fsdecode(word) for word in start.words]
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _place(fds):
    """Have these descriptors and no others, under their numbers."""
    above = max([0, *fds, *fds.values()]) + 1
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, above) for number, fd in fds.items()}
    for number, fd in moved.items():
        os.dup2(fd, number)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def _stream(fd, mode, like):
    """A standard stream as Python makes it; `like` is that of the keeper."""
    try:
        data = open(fd, f"{mode}b", closefd=False)  # noqa: SIM115 - it stays open
    except OSError:
        return None
    data.raw.name = like.name
    live = fd == 2 or data.isatty()
    text = io.TextIOWrapper(data, like.encoding, like.errors, newline="\n", line_buffering=live)
    text.mode = mode
    return text


def _run(words):
    """Run the module or the text as the interpreter does."""
    kind, program, *argv = [os.fsdecode(word) for word in words[1:]]
    if kind == "-m":
        sys.path[0], sys.argv = os.getcwd(), [program, *argv]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = "", [kind, *argv]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(module))


if __name__ == "__main__":
    main(sys.argv[1])
