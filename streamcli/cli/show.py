"""A request or the settings in force in, bytes that show them out, every secret hidden.

Contract: nothing is sent and nothing is changed. What `as_curl` returns runs as it is and takes the key from the
environment; its body is not searched for secrets.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from streamcli.output.terminal import one_line
from streamcli.protocol import request as requests
from streamcli.protocol.jsontext import dumps, loads_exact
from streamcli.protocol.secrets import is_secret, split_scheme, without_secrets

from . import config, resolve
from .args import OPTIONS
from .settings import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streamcli.protocol.request import Endpoint, Request

    from .args import Args

_MODES = frozenset({"show_config", "config", "profile"})


def dry_run(request: Request) -> bytes:
    """The request as one JSON object, every secret hidden."""
    headers = without_secrets(request.headers.items())
    body = without_tokens(loads_exact(request.body))
    return dumps({"method": request.method, "url": request.url, "headers": headers, "body": body}) + b"\n"


def without_tokens(value: Any) -> Any:
    """A body in which the tokens for other servers are hidden."""
    if isinstance(value, list):
        return [without_tokens(item) for item in value]
    if isinstance(value, dict):
        return {key: "***" if key == "authorization_token" else without_tokens(item) for key, item in value.items()}
    return value


def as_curl(request: Request, endpoint: Endpoint, args: Args) -> bytes:
    """The request as a shell command that runs as it is, every secret taken from the environment."""
    lines = [f"curl -sSN -X {request.method} {shlex.quote(request.url)}", *_way(args)]
    lines += [f"-H {_header(name, value, endpoint, args)}" for name, value in request.headers.items()]
    lines.append("--data-binary @- <<'JSON'")
    return " \\\n  ".join(lines).encode() + b"\n" + request.body + b"\nJSON\n"


def _way(args: Args) -> Iterator[str]:
    """The proxy and the certificates, as curl takes them."""
    user, at, proxy = re.sub(r"^\w+://", "", args.proxy or "").rpartition("@")
    scheme = re.match(r"\w+://|", args.proxy or "")
    if proxy and scheme:
        yield f"--proxy {shlex.quote(_hidden('proxy', scheme[0] + proxy))}"
    if at:
        yield f'--proxy-user "{_variable(unquote(user), "PROXY_USER", "user:password of --proxy")}"'
    if args.ca_file:
        yield f"--cacert {shlex.quote(args.ca_file)}"


def _header(name: str, value: str, endpoint: Endpoint, args: Args) -> str:
    if not is_secret(name, value):
        return shlex.quote(f"{name}: {value}")
    scheme, secret = split_scheme(value)
    if endpoint.credential and secret == endpoint.credential.secret:
        source = "--api-key-file" if args.api_key_file else "--api-key-cmd" if args.api_key_cmd else "the environment"
        variable = _variable(secret, "API_KEY", f"the key of {source}")
    else:
        variable = _variable(secret, re.sub(r"\W", "_", name).upper(), "the secret of this header")
    head = f"{name}: {scheme}"
    return f'"{head}{variable}"' if re.fullmatch(r"[\w: -]+", head) else f'{shlex.quote(head)}"{variable}"'


def _variable(secret: str, usual: str, meaning: str) -> str:
    """A variable of the shell that stands for a secret: one that holds it, else one that says what it has to hold.

    A name that holds something else is not taken, because that may be another server's secret.
    """
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", usual):
        if os.environ.get(name) == secret:
            return f"${name}"
    while os.environ.get(usual):
        usual += "_"
    return f"${{{usual}:?set it to {meaning}}}"


def settings(args: Args, environment: Mapping[str, str]) -> bytes:
    """The settings in force, in the form of config.toml, each line with the place where it was set."""
    lines = [f"{key} = {value}  # {one_line(origin)}\n" for key, value, origin in _settings(args, environment)]
    return "".join(lines).encode("utf-8", "backslashreplace")


def _settings(args: Args, environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    usual = {
        "model": requests.DEFAULT_MODEL,
        "base_url": requests.DEFAULT_BASE_URL if args.local is None else None,
        "max_tokens": resolve.usual_max_tokens(args),
    }
    for option in OPTIONS:
        name, value, place, origin = args.settings[option.name or ""]
        if name == "fail_on":
            value = ",".join(sorted(args.fail_on)) or "none"
        elif value is None:
            value = usual.get(name)
        if value in (None, ()) or (value in ("", False) and place == Place.DEFAULT):
            continue
        if place >= Place.VARIABLE and name in _MODES:
            continue
        yield name.replace("_", "-"), _toml(_hidden(name, value)), origin
    for model, prices in args.prices.items():
        for counter, price in prices.items():
            yield f"price.{_toml(model)}.{counter}", _toml(price), str(args.config or config.usual_path(environment))
    for variable in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"):
        if environment.get(variable, "").strip():
            yield f"# {variable}", '"***"', "environment"


def _hidden(name: str, value: Any) -> Any:
    """A value as it may be shown: without what is or may be a secret."""
    if name == "header":
        return [_hidden_line(line, ": ") for line in value]
    if name == "set":
        return [_hidden_line(line, "=") for line in value]
    if name in {"base_url", "proxy"} and value:
        return re.sub(r"\?.*", "?***", re.sub(r"^(\w+://)?.*@", r"\1***@", value))
    return "***" if name == "api_key_cmd" and value else value  # it may hold the key itself


def _hidden_line(line: str, between: str) -> str:
    name, mark, value = line.partition(between.strip())
    if not mark:
        return "***"
    return f"{name}{between}***" if is_secret(line, value.strip()) else line


def _toml(value: Any) -> str:
    """A value as TOML. JSON is TOML for strings, numbers, booleans and lists, but DEL and C1 must be escaped."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)
