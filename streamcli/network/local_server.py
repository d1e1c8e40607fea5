"""The process of --local: a GGUF file in, llama.cpp's own server on loopback out, until standard input ends.

Contract: run as a program by its path, so that nothing is imported but the standard library and xllamacpp. One line
goes to standard output: {"url"} once requests can be sent, else {"fault"}, or {"lacks"} where xllamacpp cannot be
imported. Until then llama.cpp's errors go to standard error, and later nowhere. The process dies with whoever holds the
other end of its standard input, at every moment, however that one dies; llama.cpp's destructor, which may never return,
is never called.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
from typing import Any


def main(options: dict[str, Any]) -> None:
    """Serve until standard input ends; `options` are what `local` has."""
    _die_with_the_parent()
    result = os.dup(1)
    os.dup2(2, 1)  # whatever llama.cpp prints belongs there
    try:
        server = _server(options)
        said = {"url": server.listening_address}
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    except ImportError as fault:
        said = {"lacks": str(fault)}
    except (RuntimeError, ValueError) as fault:
        said = {"fault": str(fault)}
    os.write(result, json.dumps(said).encode() + b"\n")
    if "url" not in said:
        return  # by which the rest of llama.cpp's log is written: a thread of its own does that
    os.read(0, 1)
    os._exit(0)


def _die_with_the_parent() -> None:
    # While a model is loaded no Python runs, so it is the kernel that has to end the process: SIGIO does.
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:  # it is gone already
        os._exit(0)


def _server(options: dict[str, Any]) -> Any:
    import xllamacpp  # noqa: PLC0415 - 0.2 s, in which whoever started this may die

    parameters = xllamacpp.CommonParams()
    parameters.model.path = options["model"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = options["context"]
    parameters.n_parallel = options["parallel"]
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.verbosity = 1  # errors
    parameters.ui = False
    if options["threads"]:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options["threads"]
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
