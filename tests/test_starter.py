"""tests/starter.py, tests/keeper.py: a child of the keeper is what a true start would be, and else there is a true one.

Whatever else starts the command stands on this.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys

import keeper
import pytest
import starter
from faults_command import Running, Terminal, alone, shell, streamcli, until

pytestmark = pytest.mark.skipif(starter.ALL_TRUE, reason="every start is a true one")

# Writes all that a program can tell of itself to the file of its first word, but for what differs from run to run.
PROBE = """
import ctypes, fcntl, gc, json, locale, os, resource, signal, stat, subprocess, sys, threading

def stream(it):
    names = "name", "mode", "encoding", "errors", "newlines", "line_buffering", "write_through", "closed"
    return it and [*(getattr(it, name) for name in names), it.buffer.raw.name, it.buffer.raw.closefd, it.isatty()]

def descriptor(fd):
    it = os.fstat(fd)
    return [stat.S_IFMT(it.st_mode), fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)]

def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False

def has_terminal():
    try:
        with open("/dev/tty") as tty:
            return os.tcgetpgrp(tty.fileno()) == os.getpgrp()
    except OSError:
        return False

descriptors = {fd: descriptor(fd) for fd in map(int, os.listdir("/proc/self/fd")) if is_open(fd)}
status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status"))
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
found = {
    "descriptors": descriptors,
    "streams": [stream(it) for it in (sys.stdin, sys.stdout, sys.stderr)],
    "names of streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
    "program": [__name__, __package__, globals().get("__file__"), __spec__ and __spec__.name],
    "words": [sys.argv, sys.orig_argv, sys.path, sys.flags, sys.warnoptions, sys._xoptions, sys.executable],
    "environment": {os.fsencode(name).hex(): os.fsencode(value).hex() for name, value in os.environ.items()},
    "environment of C": sorted(environ[n].hex() for n in range(len(os.environ))),
    "place": [os.getcwd(), os.umask(0o77), os.getuid(), os.getgroups(), os.nice(0), sorted(os.sched_getaffinity(0))],
    # But for 32 and 33, glibc's own, which its posix_spawn ignores.
    "signals": [int(status[name], 16) & ~(3 << 31) for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")],
    "handlers": [str(signal.getsignal(number)) for number in signal.valid_signals()],
    "timer": signal.getitimer(signal.ITIMER_REAL),
    "limits": [resource.getrlimit(number) for number in range(16)],
    "capabilities": [status[name] for name in ("CapInh", "CapEff", "NoNewPrivs", "Seccomp")],
    "session": [os.getsid(0) == os.getpid(), has_terminal()],
    "threads": threading.active_count(),
    "collection": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
    "locale": [locale.setlocale(locale.LC_ALL), sys.getfilesystemencoding(), sys.getdefaultencoding()],
}
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(params=["-m", "-c"])
def probe(request, tmp_path):
    """The words of the probe, as a module of the folder or as a text."""
    (tmp_path / "probe.py").write_text(PROBE)
    found = str(tmp_path / "found")
    return [sys.executable, "-m", "probe", found] if request.param == "-m" else [sys.executable, "-c", PROBE, found]


@pytest.fixture
def truly(monkeypatch):
    """Switches between true starts and others; those of the test are others, until it says so."""

    def switch(on):
        monkeypatch.setattr(starter, "is_true", lambda *_: on)

    switch(False)
    return switch


@pytest.fixture
def found(probe, truly, tmp_path):
    """What the probe finds, in a child and started truly."""

    def both(run):
        for on in (False, True):
            truly(on)
            run(probe)
            yield json.loads((tmp_path / "found").read_text())

    return lambda run: [*both(run)]


def running(**options):
    """Runs a probe to its end, with these options."""

    def run(probe):
        with Running(command=probe, **options) as started:
            assert type(started.process) is (subprocess.Popen if starter.is_true() else starter.Started)
            assert started.end() == (0, b"", "")

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"stdin": subprocess.PIPE},
        {"stdin": None, "stdout": None, "stderr": None},
        {"env": alone(PATH=os.environ["PATH"])},
        {"env": {"HERE": "now = é", "EMPTY": "", "BYTES": os.fsdecode(b"\xff"), "HOME": None}},
    ],
    ids=["pipes", "ours", "little environment", "odd environment"],
)
def test_a_child_finds_itself_as_a_true_start_does(found, tmp_path, options):
    child, true = found(running(cwd=tmp_path, **options))
    assert child == true


def test_a_child_is_where_and_as_free_as_who_asked(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o27)
    try:
        child, true = found(running())
    finally:
        os.umask(before)
    assert child == true
    assert child["place"][:2] == [str(tmp_path), 0o27]


def test_a_child_on_a_terminal_finds_itself_as_a_true_start_does(found, tmp_path):
    def run(probe):
        with Terminal(command=probe, cwd=tmp_path) as terminal:
            assert terminal.end().status == 0

    child, true = found(run)
    assert child == true
    assert child["session"] == [True, True]


@pytest.mark.parametrize("streams", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-", "3>three 7<&0", "</dev/zero >>one 2>&1"])
def test_a_child_of_a_shell_finds_itself_as_a_true_start_does(found, tmp_path, streams):
    def run(probe):
        words = probe if starter.is_true() else launched(probe)
        script = ["sh", "-c", f'"$@" {streams}', "sh", *words]
        variables = {"PATH": os.environ["PATH"], "HERE": "now"}
        subprocess.run(script, cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, check=True)

    child, true = found(run)
    assert child == true


def test_no_two_children_draw_the_same_numbers(truly):
    draw = "import os, random, tempfile, uuid; print(random.random(), os.urandom(8), uuid.uuid4(), tempfile.mktemp())"
    drawn = [streamcli(command=[sys.executable, "-c", draw]).out.split() for _ in range(2)]
    assert not set(drawn[0]) & set(drawn[1])


# How it ends, and what ends it


@pytest.mark.parametrize("how", [*range(0, 256, 51), -signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV])
def test_a_child_ends_as_it_does(truly, how):
    end = f"os._exit({how})" if how >= 0 else f"resource.setrlimit(4, (0, 0)); os.kill(os.getpid(), {-how})"
    assert streamcli(command=[sys.executable, "-c", f"import os, resource; {end}"]) == (how, b"", "")


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("raise KeyboardInterrupt", -2, "Keyb"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import atexit; atexit.register(print, 'end')", 0, ""),
    ],
)
def test_the_interpreter_ends_in_a_child_as_it_does(truly, program, status, said):
    ended = streamcli(command=[sys.executable, "-c", program])
    assert ended.status == status
    assert said in ended.err
    assert ended.out == (b"end\n" if "atexit" in program else b"")


SLEEPING = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]


def test_a_child_can_be_stopped_and_goes_on(truly):
    with Running(command=SLEEPING) as started:
        started.until_out(b"here\n")
        started.signal(signal.SIGSTOP)
        started.until_stopped()
        started.signal(signal.SIGCONT)
        started.signal(signal.SIGTERM)
        assert started.end().status == -signal.SIGTERM
        started.signal(signal.SIGTERM)  # whoever has the number now


def test_what_a_child_holds_is_its_own(truly):
    """The end of one's output comes though others, which were there before and came after, still run."""
    with Running(command=SLEEPING) as before, Running(command=SLEEPING) as started, Running(command=SLEEPING) as after:
        for each in (before, started, after):
            each.until_out(b"here\n")
        started.signal(signal.SIGKILL)
        assert started.end() == (-signal.SIGKILL, b"here\n", "")
        assert before.process.poll() is None
        assert after.process.poll() is None


def test_who_is_no_longer_asked_for_is_killed(truly):
    with Running(command=SLEEPING) as started:
        started.until_out(b"here\n")
        started.process._connection.shutdown(socket.SHUT_WR)
        assert started.end().status == -signal.SIGKILL


# By the launcher, as from a shell


def launched(words):
    """The words under which a shell would start this."""
    return [sys.executable, "-ISE", starter.LAUNCHER, starter.keeper_address(), *words[1:]]


PID = [sys.executable, "-c", "import os; print(os.getpid())"]


def test_a_shell_sees_how_a_child_ended(truly):
    env = {"PATH": f"{starter.folder()}:{os.environ['PATH']}"}
    script = "streamcli --nonsense 2>&-; echo $?; streamcli --help | head -c 10"
    assert streamcli(command=["sh", "-c", script], env=env).out == b"2\nUsage: str"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_signal_to_the_launcher_is_one_to_the_child(truly, number):
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with Running(command=launched([sys.executable, "-c", program])) as started:
        started.until_out(b"\n")
        started.signal(number)
        assert started.end().status == -number
        until(lambda: not os.path.exists(f"/proc/{int(started.out)}"))


def test_the_keeper_ends_with_who_started_it_and_its_children_with_it(truly, tmp_path):
    lifeline, end = os.pipe()
    address = str(tmp_path / "keeper")
    with open(end, "wb") as end, open(lifeline, "rb") as lifeline:
        words = [sys.executable, keeper.__file__, address]
        subprocess.run(words, stdin=lifeline, env=starter.plain(os.environ), check=True)
        with Running(command=[sys.executable, "-ISE", starter.LAUNCHER, address, *SLEEPING[1:]]) as started:
            started.until_out(b"here\n")
            end.close()
            assert started.process.stdout.read() == b""  # then there is nobody left who could write


# What is a true start, though nobody asked for one


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["env", *PID], {}),
        ([sys.executable, "-X", "utf8", *PID[1:]], {}),
        ([sys.executable], {}),
        (["true"], {}),
        (PID, {"PYTHONHASHSEED": "1"}),
        (PID, {"LC_ALL": "C"}),
        (PID, {"LANG": "C"}),
        (PID, {"TZ": "UTC"}),
        (PID, {"OPENSSL_CONF": "/dev/null"}),
        (PID, {"LD_PRELOAD": ""}),
    ],
)
def test_what_speaks_to_who_starts_python_is_a_true_start(truly, words, env):
    with Running(command=words, env=env) as started:
        assert type(started.process) is subprocess.Popen
        assert started.end().status == 0


def test_so_is_one_under_limits_of_its_own(truly):
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with Running(command=PID) as started:
        assert type(started.process) is starter.Started
    resource.setrlimit(resource.RLIMIT_CORE, (4096 if soft == 0 else 0, hard))
    try:
        with Running(command=PID) as started:
            assert type(started.process) is subprocess.Popen
            assert started.end().out == b"%d\n" % started.pid
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.mark.parametrize("change", [":", "ulimit -n 99", "trap '' HUP", "export LC_ALL=C", "export PYTHONSAFEPATH="])
def test_so_it_is_from_a_shell(truly, change):
    """Who is started truly takes the place of the launcher."""
    with Running(command=launched(PID), prefix=shell(change)) as started:
        ended = started.end()
    assert (ended.status, ended.err) == (0, "")
    assert (int(ended.out) == started.pid) == (change != ":")


def test_the_draw_is_one_in_fifty_and_always_the_same(monkeypatch):
    words = [f"{chr(97 + one)}{chr(97 + other)}".encode() for one in range(26) for other in range(26)]
    drawn = [word for word in words if starter.is_true(word)]
    assert 0.01 < len(drawn) / len(words) < 0.04
    assert [word for word in words if starter.is_true(word, b"http://127.0.0.1:%d" % os.getpid())] == [
        word for word in words if starter.is_true(word, b"http://127.0.0.1:8000")
    ]
