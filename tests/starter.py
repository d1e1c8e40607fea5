"""How the tests start the command: as a child of the keeper, which costs a tenth, or truly, as everybody does.

A start is a true one, and no test needs to ask for it,

* where a child could not be the same (tests/keeper.py says when): under a prefix such as setsid or strace, with options
  of Python, with limits, ignored signals or namespaces of its own, in an environment that speaks to Python or the C
  library;
* for one in fifty, drawn by the test's name and the words, so that it is always the same ones;
* for all of them where the environment has TRUE_STARTS=1, as in `make e2e`.
"""

import atexit
import contextlib
import functools
import marshal
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import keeper

ALL_TRUE = os.environ.get("TRUE_STARTS", "") not in {"", "0"} or not hasattr(os, "pidfd_open")
LAUNCHER = str(Path(__file__).with_name("launcher.py"))
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
_making = threading.RLock()


def start(words, *, env, cwd=None, stdin=None, stdout=None, stderr=None, terminal=False):
    """Start a program; returns its Popen, or what stands in for that, with pipes that hold nothing back.

    With `terminal` it leads a session of its own, and its standard input becomes its controlling terminal.
    """
    request = {"words": [os.fsencode(word) for word in words], "terminal": terminal, "cwd": os.fsencode(cwd or b"")}
    request["environment"] = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
    if keeper.can_be_forked(request["words"], request["environment"]) and not is_true(*request["words"]):
        started = _forked(request, [stdin, stdout, stderr])
        if started:
            return started
    prefix = ["setsid", "--ctty"] if terminal else []
    return subprocess.Popen([*prefix, *words], env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, bufsize=0)


def is_true(*words):
    """Whether a start is a true one whatever it is; digits do not count, for ports and folders differ each time."""
    drawn_by = b"\0".join([os.environ.get("PYTEST_CURRENT_TEST", "").encode(), *words])
    return ALL_TRUE or zlib.crc32(re.sub(rb"\d", b"", drawn_by)) % 50 == 0


def folder():
    """A folder to put on the PATH of a shell, in which `streamcli` is the command."""
    return _folder(truly=is_true())


def plain(environment):
    """An environment without what would make a start in it a true one."""
    return {name: value for name, value in environment.items() if not name.startswith(keeper.AT_START)}


class Started:
    """A child of the keeper, as a Popen: the process itself is real, only its parent is another."""

    def __init__(self, connection, pipes):
        self._connection = connection
        answer, fds, *_ = socket.recv_fds(connection, keeper.NUMBER.size, 1)
        assert answer, "the keeper is gone"
        (self.pid,) = keeper.NUMBER.unpack(answer)
        self._fd = fds[0] if fds else None
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode = None
        self._ending = threading.Lock()

    def poll(self):
        return self._ended(within=0)

    def wait(self, timeout=None):
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def _ended(self, within):
        if self.returncode is None and select.select([self._connection], [], [], within)[0]:
            answer = self._connection.recv(keeper.NUMBER.size)
            assert answer, "the keeper is gone"
            with self._ending, self._connection:
                (self.returncode,) = keeper.NUMBER.unpack(answer)
                os.close(self._fd)
        return self.returncode

    def send_signal(self, number):
        with self._ending, contextlib.suppress(ProcessLookupError):
            if self.returncode is None:
                signal.pidfd_send_signal(self._fd, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _forked(request, streams):
    """A child of the keeper; None if it refuses."""
    packet = marshal.dumps(request | {"fds": [0, 1, 2]})
    if len(packet) > keeper.LARGEST:
        return None
    with contextlib.ExitStack() as theirs:
        fds, pipes = zip(*(_opened(number, stream, theirs) for number, stream in enumerate(streams)), strict=True)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(keeper_address())
        socket.send_fds(connection, [packet], fds)
        started = Started(connection, pipes)
    if started.pid:
        return started
    for opened in (connection, *filter(None, pipes)):
        opened.close()
    return None


def _opened(number, stream, theirs):
    """The descriptor that the child gets as `number`, and our end of it if it is a pipe; `theirs` closes the first."""
    if stream == PIPE:
        ends = os.pipe()
        fd, ours = ends if number == 0 else reversed(ends)
        theirs.callback(os.close, fd)
        return fd, open(ours, "rb" if number else "wb", buffering=0)
    if stream == DEVNULL:
        fd = os.open(os.devnull, os.O_RDWR)
        theirs.callback(os.close, fd)
        return fd, None
    if stream is None:
        return number, None
    return (stream if isinstance(stream, int) else stream.fileno()), None


def _once(function):
    """As functools.cache, for threads."""
    cached = functools.cache(function)

    @functools.wraps(function)
    def locked(**options):
        with _making:
            return cached(**options)

    return locked


@_once
def _home():
    path = Path(tempfile.mkdtemp(prefix="streamcli-"))
    atexit.register(shutil.rmtree, path)
    return path


@_once
def keeper_address():
    """The address of the keeper, which lives as long as this process."""
    address = str(_home() / "keeper")
    lifeline, _end = os.pipe()
    with open(lifeline) as lifeline:
        words = [sys.executable, keeper.__file__, address]
        subprocess.run(words, stdin=lifeline, stdout=DEVNULL, env=plain(os.environ), check=True)
    return address


@_once
def _folder(truly):
    words = [] if truly else ["-ISE", LAUNCHER, keeper_address()]
    path = _home() / ("true" if truly else "kept")
    path.mkdir()
    (path / "streamcli").write_text(f'#!/bin/sh\nexec "{sys.executable}" {" ".join(words)} -m streamcli "$@"\n')
    (path / "streamcli").chmod(0o755)
    return path
