"""`Args`, files, standard input and the environment in; the request to send, and the endpoint to send it to, out.

Contract: everything that is wrong with what was asked for is UsageError here, before anything is sent. Nothing of the
input is lost: it is UTF-8, or it is rejected with the place where it is not.
Source: streamcli(1), section "Standard input".
"""

from __future__ import annotations

import contextlib
import os
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamcli.errors import UsageError
from streamcli.network import head_start
from streamcli.network.proxy import environment_proxy
from streamcli.protocol import request
from streamcli.protocol.userinput import decoded, json_value, key_in
from streamcli.turns.signals import signals_held

from . import io
from .args import STANDARD_INPUT
from .settings import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .args import Args

    Message = dict[str, Any]

# Options that are fields of the request.
_FIELDS = {
    "model": "model",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop_sequences",
}
# Options whose values are sent as text.
_TEXTS = ("model", "fallback_model", "system", "stop", "effort", "tool_choice", "schema", "beta", "set")
# Options whose file may be standard input, by a name that it has in /dev.
_MAY_BE_STDIN = ("system_file", "schema", "tools", "api_key_file", "ca_file", "config")
_CHOICES = frozenset({"auto", "any", "none"})
# A first line that makes the file a program which runs us; one that names another interpreter is text to be sent.
_RUNS_US = r"\A#!(?:.*[ \t/])?streamcli(?:[ \t\r].*)?(?:\n|\Z)"
# Where --local asks by what is known before its server is there: llama.cpp's own usual address.
_LOCAL_URL = "http://127.0.0.1:8080"
_KEY_HINT = "set ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN, or name a file with --api-key-file; --local needs no key"
# With these nothing is sent, or not straight, or by the connections of many.
_NO_HEAD_START = ("batch", "replay", "dry_run", "as_curl", "show_config", "proxy")
# Where a base URL may be set in the configuration, and what messages call one that no option sets.
_CONFIGURED = (Place.FILE, Place.PROFILE)
_NAMED = {**dict.fromkeys(_CONFIGURED, "base-url in the configuration"), Place.SHARED_VARIABLE: "ANTHROPIC_BASE_URL"}
_CITED = {"enabled": True}
_INDEX = r"0|[1-9][0-9]{0,8}"


def begin(args: Args) -> None:
    """Begin to connect, if it is already known that a connection will be made, and to which https server.

    If something is wrong with what is asked for, that is reported in its turn, and the connection ends unused.
    """
    if args.local is not None or any(getattr(args, name) for name in _NO_HEAD_START):
        return
    with contextlib.suppress(Exception):
        url, named = _address(args)
        parts = urlsplit(request.checked_base_url(url, source=named, has_credential=False, allow_http=False))
        host = str(parts.hostname)
        # httpx writes a name in other letters otherwise.
        if parts.scheme == "https" and host.isascii() and not environment_proxy(url, os.environ):
            with signals_held():  # its threads must not take them
                head_start.begin(host, parts.port or 443, args.ca_file)


def composer(args: Args) -> Callable[[str], Message | None]:
    """A function that makes the user's message of a text: the attachments, then the text, the files of -f, the prompt.

    It returns None if there is nothing of all that. The files are read once, here. With --cache what is in front of the
    question is a block of its own.
    """
    _check_stdin(args)
    words = _words(args)
    _check_encodable(words, "the prompt")
    files = [_text(path, "the prompt file") for path in args.file if path != "-"]
    blocks = [_block(args, word) for word in args.attach]

    def plain(text: str) -> Message | None:
        return {"role": "user", "content": text} if text.strip() else None

    def message(text: str) -> Message | None:
        front, question = _split(args, text, files, words) if args.cache else ((), (text, *files, words))
        before, prompt = _joined(front), _joined(question)
        if not blocks and not before:
            return plain(prompt)
        texts = [_without_line_end(before) + "\n\n"] if before else []
        texts += [prompt] if prompt else []
        return {"role": "user", "content": [*blocks, *({"type": "text", "text": each} for each in texts)]}

    return message if blocks or files or words or args.cache else plain  # as it is for most of a million lines


def _text(path: str, what: str) -> str:
    return re.sub(_RUNS_US, "", decoded(io.read_file(path, what), path))


def _split(args: Args, text: str, files: Sequence[str], words: str) -> tuple[Sequence[str], Sequence[str]]:
    """What is in front of the question and so can be shared, and the question."""
    if args.batch:
        return files, (text, words)
    return ((text, *files), (words,)) if words.strip() else (files, (text,))


def _joined(parts: Sequence[str]) -> str:
    """The parts, a blank line between two of them; "" if all of it is blank."""
    present = [part for part in parts if part]
    joined = "\n\n".join([_without_line_end(part) for part in present[:-1]] + present[-1:])
    return joined if joined.strip() else ""


def _words(args: Args) -> str:
    return " ".join(word for word in args.prompt if word != "-")


def has_question(args: Args, text: str) -> bool:
    """Whether there is a question, and not only something in front of one; `text` is that of standard input."""
    return bool(text.strip() or _words(args).strip())


def _block(args: Args, word: str) -> dict[str, Any]:
    from streamcli.turns import attachment  # noqa: PLC0415 - rarely asked for

    if word == "-":
        named = "standard input"
        block = attachment.of_bytes(io.read_stdin(), named)
    else:
        named = word
        _check_encodable(word, f"--attach {word!a}")
        found = attachment.by_reference(word)
        block = found or attachment.of_bytes(io.read_file(word, "the attachment"), word, os.path.basename(word))
    return block if _is_anthropic_s(args) else attachment.readable(block, named, by_llamacpp=args.local is not None)


def _check_stdin(args: Args) -> list[str]:
    """What reads standard input. Raises UsageError if two do."""
    takers = {"--body": args.body == "-", "--batch": args.batch == "-", "part of the prompt": _asks_for_stdin(args)}
    taken = ["--attach"] * args.attach.count("-") + [name for name, takes in takers.items() if takes]
    taken += [f"--{name.replace('_', '-')}" for name in _MAY_BE_STDIN if getattr(args, name) in STANDARD_INPUT]
    if args.attach.count("-") > 1:
        raise UsageError("standard input can be attached only once")
    if len(taken) > 1:
        raise UsageError(f"standard input cannot be both {taken[0]} and {taken[-1]}")
    if args.batch and taken == ["part of the prompt"]:
        raise UsageError("with --batch standard input is not part of the prompts: put it in a file for -f")
    return taken


def _asks_for_stdin(args: Args) -> bool:
    return "-" in args.prompt or "-" in args.file


def text_of_stdin(args: Args, are_open: Sequence[bool], diagnostics: io.Diagnostics) -> str:
    """What of standard input belongs to the prompt.

    Raises UsageError if it was asked for and is empty, because the model would make it up.
    """
    asked_for = _asks_for_stdin(args)
    is_there = are_open[io.STDIN] and not os.isatty(io.STDIN)
    if not asked_for and (args.ignore_stdin or not is_there or _check_stdin(args)):
        return ""
    words = [word for word in (*args.prompt, *args.file) if word != "-"]
    has_prompt = any(map(str.strip, words)) or bool(args.body or args.attach)
    if asked_for or not has_prompt:
        raw = io.read_stdin()
    else:
        silence = "waiting for standard input; use -I to ignore it"
        raw = io.read_stdin(timeout=args.stdin_timeout, silent=lambda: diagnostics.note(silence))
    if args.verbose:
        diagnostics.note(f"read {len(raw)} bytes from standard input")
    text = decoded(raw, "standard input")
    if has_prompt and not text.strip():
        if asked_for:
            raise UsageError(f"standard input is {'empty' if are_open[io.STDIN] else 'closed'}, but - asks for it")
        if not io.is_device(io.STDIN):
            diagnostics.note("standard input is empty: only the prompt is sent; use -I if that is what you want")
    return text


def fields(args: Args, tools: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The request without the prompt: --body, and over it the options. `tools` are the tools that can be run here."""
    for name in _TEXTS:
        given = getattr(args, name) or ()
        _check_encodable("".join((given,) if isinstance(given, str) else given), f"--{name.replace('_', '-')}")
    found = _base(args)
    found.pop("stream", None)
    for name, field in _FIELDS.items():
        if _goes_over(args, name, found, field):
            value = getattr(args, name)
            found[field] = list(value) if isinstance(value, tuple) else value
    found["model"] = found.get("model") or args.model or request.DEFAULT_MODEL
    found.setdefault("max_tokens", usual_max_tokens(args))
    if _goes_over(args, "system", found, "system"):
        found["system"] = args.system
    if args.system_file and _goes_over(args, "system_file", found, "system"):
        found["system"] = _text(args.system_file, "the system prompt")
    _add_thinking(args, found)
    _add_output(args, found)
    _add_tools(args, found, tools)
    return found


def usual_max_tokens(args: Args) -> int:
    """The default of --max-tokens: a small server's window takes less than Anthropic's models may think."""
    return request.ANTHROPIC_MAX_TOKENS if _is_anthropic_s(args) else request.DEFAULT_MAX_TOKENS


def _is_anthropic_s(args: Args) -> bool:
    return args.local is None and request.is_anthropic_s(_address(args)[0])


def _goes_over(args: Args, name: str, found: Mapping[str, Any], field: str) -> bool:
    """Only what was typed replaces a field of --body; what is set for every run does not."""
    return args.settings[name].is_given and (field not in found or args.place(name) == Place.COMMAND_LINE)


def _base(args: Args) -> dict[str, Any]:
    if args.body is None:
        return {}
    raw = io.read_stdin() if args.body == "-" else io.read_file(args.body, "the request")
    found: dict[str, Any] = json_value(raw, f"--body {args.body}")
    messages = found.get("messages", []) if isinstance(found, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError(f"--body {args.body} is not a JSON object with a list of messages")
    return found


def _add_thinking(args: Args, found: dict[str, Any]) -> None:
    if args.thinking is None or not _goes_over(args, "thinking", found, "thinking"):
        return
    shown = {"display": "summarized"} if args.show_thinking else {}
    if args.thinking == "off":
        found["thinking"] = {"type": "disabled"}
    elif args.thinking == "adaptive":
        found["thinking"] = {"type": "adaptive", **shown}
    else:
        budget = int(args.thinking)
        found["thinking"] = {"type": "enabled", "budget_tokens": budget, **shown}
        if isinstance(found["max_tokens"], int) and found["max_tokens"] <= budget:
            # The answer gets what it would get without thinking.
            found["max_tokens"] = budget + max(found["max_tokens"], 1)


def _add_output(args: Args, found: dict[str, Any]) -> None:
    given = found.get("output_config")
    wanted = dict(given) if isinstance(given, dict) else {}
    if _goes_over(args, "effort", wanted, "effort"):
        wanted["effort"] = args.effort
    if args.schema and _goes_over(args, "schema", wanted, "format"):
        wanted["format"] = {"type": "json_schema", "schema": _schema(args.schema)}
    if wanted:
        found["output_config"] = wanted


def _schema(given: str) -> dict[str, Any]:
    if given.lstrip().startswith("{"):
        schema = json_value(given.encode(), "--schema")
    else:
        schema = json_value(io.read_file(given, "the schema"), f"--schema {given}")
    if not isinstance(schema, dict):
        raise UsageError(f"--schema {given} is not a JSON object")
    return schema


def _add_tools(args: Args, found: dict[str, Any], programs: Sequence[dict[str, Any]]) -> None:
    declared = found.get("tools") or []
    if not isinstance(declared, list):
        raise UsageError(f"--body {args.body} has tools that are not a list")
    if args.tools and _goes_over(args, "tools", found, "tools"):
        from streamcli.turns import tools  # noqa: PLC0415 - rarely asked for

        declared = tools.declared(io.read_file(args.tools, "the tools"), f"--tools {args.tools}")
    if declared or programs:
        found["tools"] = [*declared, *programs]
        names = [tool.get("name") for tool in found["tools"] if isinstance(tool, dict)]
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice:
            raise UsageError(f"two tools have the name {twice!r}: rename one")
    if args.tool_choice and _goes_over(args, "tool_choice", found, "tool_choice"):
        is_name = args.tool_choice not in _CHOICES
        found["tool_choice"] = {"type": "tool", "name": args.tool_choice} if is_name else {"type": args.tool_choice}


def body(args: Args, found: dict[str, Any], messages: Sequence[Message]) -> dict[str, Any]:
    """The request, ready to send: the `found` fields, the `messages`, and over all of it what --set says.

    Raises UsageError if there is nothing to ask.
    """
    _cite_documents(args, messages)
    found = settle(args, {**found, "messages": list(messages), "stream": True})
    messages = found["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UsageError("--set messages: needs a list of objects")
    if not messages:
        raise UsageError(
            "no prompt: give one as an argument, in a file with -f, or on standard input; see streamcli -h"
        )
    if found["stream"] is not True:
        raise UsageError("--set stream: leave it out; answers are always streamed")
    return found


def _cite_documents(args: Args, messages: Sequence[Message]) -> None:
    """Let all documents be cited, if --show-sources asks for it or one of an earlier turn can be.

    The API takes a request only if all of its documents can be cited or none. One that says itself what it wants stays.
    """
    found = documents(messages)
    joined = bool(args.attach or args.conversation) and any(block.get("citations") == _CITED for block in found)
    for block in found if args.show_sources or joined else ():
        block.setdefault("citations", dict(_CITED))


def documents(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The document blocks of the messages."""
    contents = [content for message in messages if isinstance(content := message.get("content"), list)]
    blocks = [block for content in contents for block in content if isinstance(block, dict)]
    return [block for block in blocks if block.get("type") == "document"]


def settle(args: Args, found: dict[str, Any]) -> dict[str, Any]:
    """The request with what --set says, which comes last and wins over everything."""
    for setting in args.set:
        _set(found, setting)
    return found


def _set(found: dict[str, Any], setting: str) -> None:
    from streamcli.protocol.jsontext import loads_exact  # noqa: PLC0415 - a connection begins before orjson is imported

    key, equals, text = setting.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {setting!r} needs the form KEY=VALUE")
    try:
        value = loads_exact(text.encode())
    except ValueError:
        value = text
    holder: Any = found
    for name, following in pairwise(names):
        holder = holder[_place(holder, name, [] if re.fullmatch(_INDEX, following) else {}, key)]
        if not isinstance(holder, dict | list):
            raise UsageError(f"--set {key}: {name} is neither an object nor a list")
    holder[_place(holder, names[-1], value, key)] = value


def _place(holder: Any, name: str, usual: Any, key: str) -> str | int:
    """The key or the index that `name` is in an object or a list; where nothing stands there yet, `usual` does now."""
    if isinstance(holder, dict):
        holder.setdefault(name, usual)
        return name
    if not re.fullmatch(_INDEX, name) or int(name) > len(holder):
        raise UsageError(f"--set {key}: {name} is not an index of that list, which takes 0 to {len(holder)}")
    if int(name) == len(holder):
        holder.append(usual)
    return int(name)


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _check_encodable(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise UsageError(f"{what} is not UTF-8: character {fault.start + 1}") from None


def endpoint(args: Args) -> request.Endpoint:
    """Where the request goes and with which key; the server of --local needs none."""
    headers = [*request.custom_headers(os.environ), *(request.parsed_header(line, source="-H") for line in args.header)]
    if args.local is not None:
        return request.Endpoint(_LOCAL_URL, None, args.api_version, tuple(headers))
    url, named = _address(args)
    _check_encodable(url, named)
    key, source = _explicit_key(args)
    credential = request.credential(os.environ, key=key, source=source, scheme=args.auth or "")
    asked = request.Endpoint(url, credential, args.api_version, tuple(headers), _KEY_HINT)
    return asked.checked(named, allow_http=args.allow_http)


def _address(args: Args) -> tuple[str, str]:
    """The base URL, and what messages call it."""
    if args.base_url is None:
        return request.DEFAULT_BASE_URL, "the default base URL"
    return args.base_url, _NAMED.get(args.place("base_url"), "--base-url")


def _explicit_key(args: Args) -> tuple[str | None, str]:
    """The key that an option names, and the option, or None.

    One in the configuration gives way to one in the environment, as everything there does, unless the base URL is in
    the configuration too: a key that is meant for one server must not be sent to another.
    """
    is_near = max(args.place("api_key_file"), args.place("api_key_cmd")) >= Place.VARIABLE
    if not is_near and args.place("base_url") not in _CONFIGURED and request.credential(os.environ):
        return None, ""
    if args.api_key_file:
        raw, source = io.read_file(args.api_key_file, "the key file"), "--api-key-file"
    elif args.api_key_cmd:
        from streamcli.turns.processes import output_of  # noqa: PLC0415 - few have such a command

        status, raw = output_of(args.api_key_cmd)
        source = "--api-key-cmd"
        if status:
            raise UsageError(f"the command of --api-key-cmd failed with status {status}")
    else:
        return None, ""
    is_utf_16 = raw[:2] in {b"\xff\xfe", b"\xfe\xff"}  # as PowerShell writes files
    key = raw.decode("utf-16" if is_utf_16 else "utf-8", "replace")
    if not key_in(key)[0]:
        raise UsageError(f"the key from {source} is empty")
    return key, source
