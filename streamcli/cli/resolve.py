"""`Args` and the world in, what to send and where out: files, standard input, keys and addresses are looked up here.

Contract: everything that is wrong with the asking is found here as UsageError, before anything is sent, and nothing
is lost on the way: input is UTF-8 or it is refused with the place. Source: design.md section 2.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

from streamcli import request
from streamcli.errors import UsageError
from streamcli.jsontext import loads_exact

from . import io

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .args import Args

_BOM = "\ufeff"
# Options that are fields of the request under the same name.
_FIELDS = ("temperature", "top_p", "top_k")
# Options that are sent as text.
_TEXTS = ("model", "system", "stop", "beta", "set")


def body(args: Args, world: io.World, voice: io.Voice) -> dict[str, Any]:
    """The request's body (protocol.md section 2.1): --body, then the options, then --set, then the prompt's turn."""
    for name in _TEXTS:
        given = getattr(args, name) or ()
        _refuse_surrogates("".join((given,) if isinstance(given, str) else given), f"--{name}")
    fields = _base(args)
    prompt = _prompt(args, world, voice)
    model = args.model or fields.get("model") or os.environ.get("ANTHROPIC_MODEL") or request.DEFAULT_MODEL
    limit = args.max_tokens if args.max_tokens is not None else fields.get("max_tokens", request.DEFAULT_MAX_TOKENS)
    fields |= {"model": model, "max_tokens": limit, "messages": _turns(fields, prompt), "stream": True}
    fields |= {name: getattr(args, name) for name in _FIELDS if getattr(args, name) is not None}
    system = _system(args)
    if system is not None:
        fields["system"] = system
    if args.stop:
        fields["stop_sequences"] = list(args.stop)
    for setting in args.set:
        _set(fields, setting)
    if not fields["messages"]:
        raise UsageError("no prompt: give one as an argument, in a file with -f, or on standard input")
    if fields["stream"] is not True:
        raise UsageError("--set stream: an answer is always streamed")
    return fields


def _base(args: Args) -> dict[str, Any]:
    if args.body is None:
        return {}
    raw = io.read_stdin() if args.body == "-" else io.read_file(args.body, "the request")
    try:
        fields = loads_exact(_text(raw, "standard input" if args.body == "-" else args.body).encode())
    except ValueError as fault:
        raise UsageError(f"--body {args.body} is no JSON: {fault}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("messages", []), list):
        raise UsageError(f"--body {args.body} is no JSON object with a list of messages")
    return fields


def _turns(fields: Mapping[str, Any], prompt: str) -> list[Any]:
    turns = list(fields.get("messages", ()))
    if prompt:
        turns.append({"role": "user", "content": prompt})
    return turns


def _prompt(args: Args, world: io.World, voice: io.Voice) -> str:
    """Standard input, the files, the words; one blank line between each, "" where all of it is blank."""
    words = " ".join(word for word in args.prompt if word != "-")
    _refuse_surrogates(words, "the prompt")
    files = [path for path in args.file if path != "-"]
    asked_for = "-" in args.prompt or "-" in args.file
    stdin_is_taken = args.body == "-"
    if stdin_is_taken and asked_for:
        raise UsageError("standard input cannot be both --body and part of the prompt")
    parts = []
    if (asked_for or not (args.ignore_stdin or stdin_is_taken)) and world.open[io.STDIN]:
        parts.append(_stdin(args, world, voice, asked_for=asked_for, has_prompt=bool(words or files or args.body)))
    parts += [_text(io.read_file(path, "the prompt file"), path) for path in files]
    parts.append(words)
    present = [part for part in parts if part]
    joined = "\n\n".join([_without_line_end(part) for part in present[:-1]] + present[-1:])
    return joined if joined.strip() else ""


def _stdin(args: Args, world: io.World, voice: io.Voice, *, asked_for: bool, has_prompt: bool) -> str:
    if world.terminal[io.STDIN] and not asked_for:
        return ""
    patient = asked_for or not has_prompt
    raw = io.read_stdin(
        timeout=None if patient else args.stdin_timeout,
        silent=lambda: voice.note("waiting for standard input; -I ignores it"),
    )
    if args.verbose:
        voice.note(f"read {len(raw)} bytes from standard input")
    return _text(raw, "standard input")


def _text(raw: bytes, source: str) -> str:
    """Text as it is, but for a byte order mark at its start."""
    try:
        return raw.decode().removeprefix(_BOM)
    except UnicodeDecodeError as fault:
        raise UsageError(f"{source} is not UTF-8: byte {fault.start + 1} is {raw[fault.start]:#04x}") from None


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _refuse_surrogates(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise UsageError(f"{what} is not UTF-8: character {fault.start + 1}") from None


def _system(args: Args) -> str | None:
    if args.system_file:
        return _text(io.read_file(args.system_file, "the system prompt"), args.system_file)
    return args.system


def _set(fields: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {setting!r} needs the form KEY=VALUE")
    try:
        value = loads_exact(text.encode())
    except ValueError:
        value = text
    *parents, last = names
    for name in parents:
        fields = fields.setdefault(name, {})
        if not isinstance(fields, dict):
            raise UsageError(f"--set {key}: {name} is no object")
    fields[last] = value


def endpoint(args: Args, local_url: str | None = None) -> request.Endpoint:
    """Where the request goes and with which key; `local_url` is the server of --local, which needs none."""
    headers = [*request.custom_headers(os.environ), *(request.parsed_header(line, source="-H") for line in args.header)]
    if local_url:
        return request.Endpoint(local_url, None, args.api_version, tuple(headers))
    key, source = _explicit_key(args)
    credential = request.credential(os.environ, key=key, source=source, scheme=args.auth or "")
    url, named = next(
        ((url, named) for url, named in _addresses(args) if url), (request.DEFAULT_BASE_URL, "the default address")
    )
    _refuse_surrogates(url, named)
    has_credential = credential is not None or request.holds_credential(headers)
    base_url = request.checked_base_url(url, source=named, has_credential=has_credential, allow_http=args.allow_http)
    return request.Endpoint(base_url, credential, args.api_version, tuple(headers))


def _addresses(args: Args) -> list[tuple[str | None, str]]:
    return [(args.base_url, "--base-url"), (os.environ.get("ANTHROPIC_BASE_URL"), "ANTHROPIC_BASE_URL")]


def _explicit_key(args: Args) -> tuple[str | None, str]:
    if args.api_key_file:
        return _key(io.read_file(args.api_key_file, "the key file"), "--api-key-file")
    if args.api_key_cmd:
        return _key(_output_of(args.api_key_cmd), "--api-key-cmd")
    return None, ""


def _key(raw: bytes, source: str) -> tuple[str, str]:
    key = raw.decode("utf-8", "replace").strip()
    if not key:
        raise UsageError(f"{source} gave an empty key")
    return key, source


def _output_of(command: str) -> bytes:
    """What a shell command prints; our own standard input is not for it."""
    result = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)  # noqa: S602 - the user's own words
    if result.returncode:
        raise UsageError(f"--api-key-cmd ended with status {result.returncode}")
    return result.stdout
