"""Servers that other people wrote: installed at first use, each into a folder of its own below build/servers, and run.

Contract: `running` gives the URL of a server for as long as its context is open; then all its processes are gone. It
listens on loopback, has a home of its own, and finds no way out: its HTTP proxy is a port nobody listens on. What
cannot be installed is a skipped test that says why; what does not start is a failed one.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from faults_command import free_port

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "servers"
INSTALL_WITHIN, START_WITHIN = 900, 180  # seconds
_GENTLY = ["nice", "-n", "10"]
_NOWHERE = "http://127.0.0.1:9"


class Server(NamedTuple):
    """How a server comes, and how it is started.

    `packages` are those of an installer, or nothing for a program that the machine has; `alone` are installed without
    what they depend on. What is `large` is only installed where LARGE is set in the environment. In the words of
    `start`, in `files`, by their names, and in `variables` these places are filled in: {bin} and {folder} where it is
    installed and where it runs, {port} and {spare} for it to listen on, and what else the test gives. `path` is where
    its Messages API begins; it is there when the port is open, or the path `ready` is answered with 200.
    """

    start: tuple
    installer: str = "pip"
    packages: tuple = ()
    alone: tuple = ()
    large: bool = False
    files: dict = {}  # noqa: RUF012 - never changed
    variables: dict = {}  # noqa: RUF012
    path: str = ""
    ready: str = ""


# llama.cpp as a process of its own; the test gives {model} and {options}.
LLAMACPP = Server((sys.executable, "{here}/llamacpp.py", "{port}", "{model}", "{options}"), ready="/health")


def _pip(folder, server):
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    yield [sys.executable, "-m", "venv", folder]
    yield [*pip, *(_filled(word, {"here": HERE}) for word in server.packages)]
    if server.alone:
        yield [*pip, "--no-deps", *server.alone]


def _npm(folder, server):
    yield ["npm", "install", "--prefix", folder, "--loglevel", "error", "--no-fund", "--no-audit", *server.packages]


_INSTALLERS = {"pip": (_pip, "bin"), "npm": (_npm, "node_modules/.bin")}


def installed(name, server):
    """The folder of a server's programs."""
    commands, programs = _INSTALLERS[server.installer]
    folder, wanted = FOLDER / name.partition(" ")[0], "\n".join([*server.packages, *server.alone])
    note = folder / "installed"
    if not note.exists() or note.read_text() != wanted:
        if server.large and "LARGE" not in os.environ:
            pytest.skip(f"{name} takes gigabytes: LARGE=1 make e2e installs it")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in commands(folder, server):
            _install(name, [*_GENTLY, *command])
        note.write_text(wanted)
    return folder / programs


def _install(name, command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_WITHIN, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        pytest.skip(f"{name} cannot be installed: {fault}")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        pytest.skip(f"{name} cannot be installed: {'; '.join(said[-4:])[-300:]}")


def program(name, package):
    """The path of a program of the machine's, or a skipped test."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return path or pytest.skip(f"{name} is not installed: apt-get install {package}")


@contextlib.contextmanager
def running(name, server, folder, **places):
    """The base URL of the server, which runs in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    programs = installed(name, server) if server.packages else ""
    places |= {"port": free_port(), "spare": free_port(), "folder": folder, "bin": programs, "here": HERE}
    for file, text in server.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(_filled(text, places))
    words = [_filled(word, places) for word in server.start]
    variables = {name: _filled(value, places) for name, value in server.variables.items()}
    with process(words, folder, variables) as child:
        _until_ready(child, places["port"], server, name, folder)
        yield f"http://127.0.0.1:{places['port']}{server.path}"


@contextlib.contextmanager
def llamacpp(model, folder, **options):
    """The base URL of llama.cpp's server with these options."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    with running("llama.cpp", LLAMACPP, folder, model=model, options=json.dumps(options)) as url:
        yield url


def _filled(text, places):
    for name, value in places.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


@contextlib.contextmanager
def process(words, folder, variables=None):
    """A process in `folder`, which writes to the file `log` there; at the end it and all that it started are killed."""
    environment = {
        "PATH": f"{Path(words[0]).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _NOWHERE),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
        **(variables or {}),
    }
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [*_GENTLY, *words], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield child
    finally:
        descendants = _descendants(child.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait()


def _descendants(pid):
    """The processes that a process started, and those that they did: not all of them stay in its group."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a process, in brackets, may hold anything.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def _until_ready(child, port, server, name, folder):
    late = time.monotonic() + START_WITHIN
    while not _answers(port, server.ready):
        if child.poll() is not None or time.monotonic() > late:
            said = (folder / "log").read_text("utf-8", "replace")[-500:]
            raise AssertionError(f"{name} does not start: {said or 'it does not say why'}")
        time.sleep(0.05)


def _answers(port, path):
    """Whether somebody listens there, and answers with 200 if it is a path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.connect()
        if not path:
            return True
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
