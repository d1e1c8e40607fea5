"""argv, STREAMCLI_* variables and the configuration in, `Args` out.

Contract: options are checked one by one and against each other. Nothing but the configuration is read here, and only
click and the standard library are imported, so that --help costs no more than click does. Every option is one entry in
GROUPS, and a test holds the man page to that table.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from streamcli.errors import UsageError
from streamcli.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .settings import Place, Setting

OUTPUT_FORMATS = ("events", "message", "summary", "snapshots", "sse")


class Args(NamedTuple):
    """What was asked for. Times are in seconds, prices for a million; `settings` know where each was set."""

    prompt: tuple[str, ...]
    output_format: str
    file: tuple[str, ...]
    attach: tuple[str, ...]
    conversation: str | None
    ignore_stdin: bool
    stdin_timeout: float
    body: str | None
    model: str | None
    fallback_model: tuple[str, ...]
    system: str | None
    system_file: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    stop: tuple[str, ...]
    thinking: str | None
    effort: str | None
    schema: str | None
    cache: str | None
    beta: tuple[str, ...]
    set: tuple[str, ...]
    tools: str | None
    tool: tuple[str, ...]
    tool_choice: str | None
    max_turns: int
    tool_timeout: float
    confirm: bool
    extract: bool
    show_thinking: bool
    show_sources: bool
    progress: bool
    sanitize: str
    buffer: int | None
    pace: float | None
    usage: bool
    usage_to: str | None
    events_to: str | None
    output: str | None
    record: str | None
    replay: str | None
    replay_speed: float
    batch: str | None
    lines: bool
    jobs: int
    max_total_tokens: int | None
    unordered: bool
    resume: bool
    retry_errors: bool
    offload: bool
    cancel: bool
    base_url: str | None
    local: str | None
    api_key_file: str | None
    api_key_cmd: str | None
    auth: str | None
    api_version: str | None
    header: tuple[str, ...]
    connect_timeout: float
    idle_timeout: float
    timeout: float | None
    retries: int
    proxy: str | None
    ca_file: str | None
    strict: bool
    max_event_bytes: int
    allow_http: bool
    fail_on: frozenset[str]
    error_format: str
    dry_run: bool
    as_curl: bool
    count_tokens: bool
    models: bool
    config: str | None
    profile: str | None
    show_config: bool
    verbose: bool
    quiet: bool
    prices: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Setting]

    def place(self, name: str) -> Place:
        """Where the option was set."""
        return self.settings[name].place


def _number(kind: type[int] | type[float], least: float = 0, most: float = math.inf) -> Callable[[Any], float]:
    """The type of a finite number from `least` to `most`; click's own types accept nan and inf."""

    def number(value: Any) -> float:
        try:
            found = kind(value)
        except (ValueError, OverflowError):
            found = None
        is_fraction = isinstance(value, float) and found != value  # in the configuration
        if found is None or is_fraction or found - found != 0:  # as it is not 0 of nan and infinity
            raise click.BadParameter(f"{value!r} is not a {'whole ' if kind is int else ''}number")
        if not least <= found <= most:
            limit = f" and at most {most}" if most < math.inf else ""
            raise click.BadParameter(f"{value!r} is out of range: it must be at least {least}{limit}")
        return found

    return number


def thinking(value: Any) -> str:
    """How the model thinks: "adaptive", "off" or a number of tokens."""
    if not re.fullmatch(r"adaptive|off|[1-9][0-9]{0,17}", str(value)):
        raise click.BadParameter(f"{value!r} must be adaptive, off or a number of tokens")
    return str(value)


# Options whose value may be left out, and what that means.
BARE = {"local": "", "cache": "5m"}


class Option(click.Option):
    """An option whose variable may have white space around it, as editors and files leave it; that is left out.

    Where it may be given several times, each line is a value, because a text may have blanks in it. The one whose value
    may be left out is also switched on and off, as click takes it for flags.
    """

    def __init__(self, *names: str, **settings: Any) -> None:
        super().__init__(names, **settings)

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """The variable's value or values, None where it is unset."""
        value = self.resolve_envvar_value(ctx)
        if self.multiple and value is not None:
            return [line.removesuffix("\r") for line in value.split("\n") if line.strip("\r")]
        return super().value_from_envvar(ctx)

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The variable's value, None where it is unset or blank."""
        value = super().resolve_envvar_value(ctx)
        if self.multiple or value is None:
            return value
        value = value.strip() or None
        if value and self.name == "local":
            with contextlib.suppress(click.BadParameter):  # it names a model
                return BARE["local"] if click.BOOL.convert(value, None, None) else None
        return value


# A system call can wait some 24 days; 64 bits are the largest integers that every JSON parser takes.
_SECONDS, _COUNT = _number(float, most=10**6), _number(int, most=2**63 - 1)
_SPEED = _number(float, most=10**6)
_SANITIZE = click.Choice(["auto", "always", "never"])
_SOME, _MANY = _number(int, least=1, most=2**31 - 1), _number(int, least=1, most=2**63 - 1)


_flag = functools.partial(Option, is_flag=True, default=False)


def _seconds(name: str, *, help: str, default: float | None = None) -> Option:  # noqa: A002 - click's word
    said = f"{help} [default: {default}]" if default is not None else help
    return Option(name, type=_SECONDS, default=default, metavar="SECONDS", help=said)


_FORMS_OF_JSON = ["STREAMCLI_MESSAGE", "STREAMCLI_JSON"]

GROUPS: dict[str, list[click.Option]] = {
    "Input": [
        Option("-f", "--file", multiple=True, metavar="PATH", help="Add the text of a file to the prompt."),
        Option("-a", "--attach", multiple=True, metavar="PATH|URL", help="Attach an image, a PDF or a text file."),
        Option("-c", "--conversation", metavar="FILE", help="Continue the conversation in FILE."),
        _flag("-I", "--ignore-stdin", help="Do not read standard input."),
        _seconds("--stdin-timeout", help="Time limit for silent input; 0: none.", default=60),
        Option("--body", metavar="FILE", help="Start from the request in a JSON file."),
    ],
    "Model": [
        Option("-m", "--model", metavar="NAME", help="Model to ask. [default: claude-sonnet-5-5]"),
        Option("--fallback-model", multiple=True, metavar="NAME", help="Ask this model if the first is overloaded."),
        Option("-s", "--system", metavar="TEXT", help="System prompt."),
        Option("--system-file", metavar="PATH", help="Read the system prompt from a file."),
        Option("--max-tokens", type=_COUNT, metavar="N", help="Longest answer. [default: 32000, elsewhere 8192]"),
        Option("--temperature", type=_number(float), metavar="X", help="Sampling temperature, such as 0.2."),
        Option("--top-p", type=_number(float), metavar="X", help="Sample from the likeliest tokens that sum to X."),
        Option("--top-k", type=_COUNT, metavar="N", help="Sample from the N likeliest tokens."),
        Option("--stop", multiple=True, metavar="TEXT", help="Stop when the model writes TEXT."),
        Option(
            "--thinking", type=thinking, metavar="adaptive|off|N", help="Think as needed, never, or up to N tokens."
        ),
        Option("--effort", metavar="LEVEL", help="Effort: low, medium, high, xhigh or max."),
        Option("--schema", metavar="FILE|JSON", help="Answer in JSON that fits this JSON Schema."),
        Option("--cache", type=click.Choice(["5m", "1h"]), metavar="[=1h]", help="Cache what requests share."),
        Option("--beta", multiple=True, metavar="NAME", help="Enable a beta feature of the API."),
        Option("--set", multiple=True, metavar="KEY=VALUE", help="Set any field, such as metadata.user_id=7."),
    ],
    "Tools": [
        Option("--tools", metavar="FILE", help="Declare tools from a JSON file; run none."),
        Option("-T", "--tool", multiple=True, metavar="PROGRAM", help="Let the model run this program as a tool."),
        _flag("--confirm", help="Ask on the terminal before a tool runs."),
        Option("--tool-choice", metavar="NAME", help="Call this tool, or: auto, any, none."),
        Option("--max-turns", type=_SOME, default=10, metavar="N", help="Limit of turns with tools. [default: 10]"),
        _seconds("--tool-timeout", help="Time limit for a call; 0: none.", default=60),
    ],
    "Output format (choose one; text otherwise)": [
        _flag("--events", help="Print each event as a line of JSON."),
        Option("--message", "--json", is_flag=True, envvar=_FORMS_OF_JSON, help="Print the final message as JSON."),
        _flag("--summary", help="Print model, stop reason, tokens and times."),
        _flag("--snapshots", help="Print the message so far after each event."),
        _flag("--sse", help="Print the event stream as it came."),
    ],
    "Output": [
        Option("-o", "--output", metavar="FILE", help="Write to FILE, once the answer is complete."),
        _flag("-x", "--extract", help="Print only the last fenced code block."),
        _flag("--show-thinking", help="Print the thinking to standard error."),
        _flag("--show-sources", help="List cited sources on standard error."),
        _flag("--progress", help="Show tokens, speed and time on the terminal."),
        Option("--sanitize", type=_SANITIZE, default="auto", help="Show control characters. [default: auto]"),
        Option("--buffer", type=_SOME, metavar="N", help="Print sentences, or pieces of N characters."),
        _seconds("--pace", help="Pause between two pieces of text."),
        _flag("-u", "--usage", help="Print token counts to standard error."),
        Option("--usage-to", metavar="FILE", help="Write the summary as JSON; /dev/fd/N works."),
        Option("--events-to", metavar="FILE", help="Write the events as well; /dev/fd/N works."),
    ],
    "Recording": [
        Option("--record", metavar="FILE", help="Record the HTTP traffic, without secrets."),
        Option("--replay", metavar="FILE", help="Answer from a recording: no network, no key."),
        Option("--replay-speed", type=_SPEED, default=0, metavar="X", help="1: as recorded, 0: at once. [default: 0]"),
    ],
    "Many prompts": [
        Option("--batch", metavar="FILE", help="Ask every line of FILE; - is standard input."),
        _flag("--lines", help="Each line is a prompt, not JSON."),
        Option("-j", "--jobs", type=_SOME, default=8, metavar="N", help="Requests at a time. [default: 8]"),
        Option("--max-total-tokens", type=_MANY, metavar="N", help="Start no more lines after N tokens."),
        _flag("--unordered", help="Print results as they come."),
        _flag("--resume", help="Ask only what -o does not hold yet."),
        _flag("--retry-errors/--no-retry-errors", default=True, help="Ask failed lines again. [default: yes]"),
        _flag("--offload", help="Use the Message Batches API: half the price."),
        _flag("--cancel", help="Cancel the batches of --offload."),
    ],
    "Connection": [
        Option("--base-url", metavar="URL", help="Server. [default: https://api.anthropic.com]"),
        Option("--local", metavar="[MODEL.gguf]", help="Run a model on this machine: no key needed."),
        Option("--api-key-file", metavar="PATH", help="Read the API key from a file."),
        Option("--api-key-cmd", metavar="COMMAND", help="Read the API key from a command's output."),
        Option("--auth", type=click.Choice(["x-api-key", "bearer"]), help="Header that carries the API key."),
        Option("--api-version", metavar="DATE", help="Value of the anthropic-version header."),
        Option("-H", "--header", multiple=True, metavar="'NAME: VALUE'", help="Send this header too."),
        _seconds("--connect-timeout", help="Time limit for connecting; 0: none.", default=5),
        _seconds("--idle-timeout", help="Time limit for silence; 0: none.", default=90),
        _seconds("--timeout", help="Time limit for everything. [default: none]"),
        Option("--retries", type=_COUNT, default=2, metavar="N", help="Retries after transient errors. [default: 2]"),
        Option("--proxy", metavar="URL", help="Proxy, instead of the environment's."),
        Option("--ca-file", metavar="PATH", help="Trust these certificates, not the system's."),
        _flag("--strict", help="Fail if the stream breaks the rules."),
        Option("--max-event-bytes", type=_COUNT, default=1 << 26, metavar="N", help="Largest event. [default: 64 MiB]"),
        _flag("--allow-http", help="Allow a key to be sent over plain HTTP."),
    ],
    "Other": [
        Option("--fail-on", metavar="LIST", default="refusal", help="Stop reasons to fail on. [default: refusal]"),
        Option("--error-format", type=click.Choice(["text", "json"]), default="text", help="How to print errors."),
        _flag("--dry-run", help="Print the request as JSON; send nothing."),
        _flag("--as-curl", help="Print the request for curl; send nothing."),
        _flag("--count-tokens", help="Print how many tokens the request has."),
        _flag("--models", help="List the server's models."),
        Option("--config", metavar="FILE", help="Use this configuration file."),
        Option("--profile", metavar="NAME", help="Use [profile.NAME] of the configuration."),
        _flag("--show-config", help="Print all settings and where each was set."),
        _flag("-v", "--verbose", help="Print request id, times and rate limits."),
        _flag("-q", "--quiet", help="Print errors only, no notes."),
    ],
}
# What -h shows: those of every day.
DAILY = ("file", "attach", "model", "system", "conversation", "output", "extract", "message", "usage", "local")
OPTIONS = [option for options in GROUPS.values() for option in options]


def _tell(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print what was asked for instead of an answer, and exit."""
    if not wanted or ctx.resilient_parsing:
        return
    if sys.stdout is None:  # it was closed when the process began; before 8.1.7 click did not expect that
        raise OSError
    if param.name == "h":
        ctx.meta[_IS_SHORT] = True
    click.echo(f"streamcli {__version__}" if param.name == "version" else ctx.get_help(), color=ctx.color)
    ctx.exit()


# Not from STREAMCLI_VERSION or _HELP, which an image may hold for purposes of its own.
_ALONE: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "allow_from_autoenv": False}
_TELLING = [
    click.Option(["--version"], help="Print the version.", callback=_tell, **_ALONE),
    # Versions of click differ in when they look at their own, and whether it has a variable.
    click.Option(["-h"], help="Show the most common options.", callback=_tell, **_ALONE),
    click.Option(["--help"], help="Show all options.", callback=_tell, **_ALONE),
]


class Command(click.Command):
    """A command whose --help has headings, and whose -h shows the everyday options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the table's order."""
        groups: dict[str, list[click.Option]] = {**GROUPS, "Other": [*GROUPS["Other"], *_TELLING]}
        if _IS_SHORT in ctx.meta:
            groups = {"Options": [option for name in DAILY for option in OPTIONS if option.name == name]}
        for heading, options in groups.items():
            with formatter.section(heading):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write where there is more, or what the exit statuses mean."""
        self.epilog = _MORE if _IS_SHORT in ctx.meta else _EPILOG
        super().format_epilog(ctx, formatter)


_MODES = ("batch", "count_tokens", "models", "show_config", "dry_run", "as_curl")
# Of these, what can be done with many requests as well.
_ALSO_OF_MANY = (("batch", "count_tokens"), ("batch", "dry_run"))

EXCLUSIVE = [
    ("system", "system_file"),
    ("api_key_file", "api_key_cmd"),
    ("local", "base_url"),
    ("replay", "local"),
    ("replay", "record"),
    *(("replay", name) for name in ("conversation", "count_tokens", "models", "dry_run", "as_curl")),
    *(pair for pair in itertools.combinations(_MODES, 2) if pair not in _ALSO_OF_MANY),
    # What is for one answer makes no sense for many.
    *(("batch", name) for name in ("conversation", "tool", "fallback_model", "events_to", "record", "replay")),
    *(("batch", name) for name in ("extract", "show_thinking", "show_sources", "progress", "buffer", "pace", "usage")),
    *(("offload", name) for name in ("local", "unordered", "count_tokens", "max_total_tokens")),
    ("count_tokens", "max_total_tokens"),
    *itertools.combinations(OUTPUT_FORMATS, 2),
    *itertools.product(OUTPUT_FORMATS, ("extract", "buffer", "pace", "batch")),
    *itertools.product(set(OUTPUT_FORMATS) - {"message"}, ("count_tokens", "models")),
]
# Names of standard input, which is - for the options that know it by that.
STANDARD_INPUT = frozenset({"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})
_KNOW_DASH = ("file", "attach", "body", "batch")
_MAY_BE_EMPTY = frozenset({"local", "system", "prompt"})
# Variables that other programs read, too, and the options that they stand for.
_SHARED_VARIABLES = {"model": "ANTHROPIC_MODEL", "base_url": "ANTHROPIC_BASE_URL"}
# Options that mean nothing without another one.
_NEEDS = [
    *((name, "batch") for name in ("lines", "unordered", "resume", "offload", "jobs", "max_total_tokens")),
    *((name, "output") for name in ("resume", "offload")),
    ("cancel", "offload"),
    ("confirm", "tool"),
]

_IS_SHORT = "streamcli.short"
_HELP = """Send a prompt to a Messages endpoint and stream the answer.

Standard input is sent too, before the prompt, unless it is a terminal. The API key comes from ANTHROPIC_API_KEY; a
server on this machine needs none.

\b
Examples:
  git diff --cached | streamcli 'Write the commit message.'
  streamcli --base-url http://localhost:11434 -m qwen3 'Hello?'
"""
_MORE = "All options: streamcli --help. Everything else: man streamcli."
_EPILOG = """\b
Exit status:
  0  complete                       6  no connection
  2  wrong usage; nothing was sent  7  timeout
  3  rejected by the server         8  the stream is incomplete
  4  API key or permission          9  refused, or another reason in --fail-on
  5  rate limited or overloaded    10  the output could not be written
                                   11  not what --schema, -x or -T needs

The manual: man streamcli."""


def command() -> click.Command:
    """The click command; invoking it returns `Args`."""
    return Command(
        "streamcli",
        params=[click.Argument(["prompt"], nargs=-1, metavar="[PROMPT]..."), *OPTIONS, *_TELLING],
        add_help_option=False,
        callback=_collect,
        help=_HELP,
        context_settings={"auto_envvar_prefix": "STREAMCLI"},
    )


def parse(argv: list[str]) -> Args | int:
    """`Args` from the command's arguments, or the exit status after --help or --version. Raises UsageError."""
    try:
        asked: Args | int = command().main(_with_values(argv), prog_name="streamcli", standalone_mode=False)
    except click.ClickException as fault:
        raise UsageError(_plain(fault)) from None
    return asked


def _plain(fault: click.ClickException) -> str:
    message = fault.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    if isinstance(fault, click.NoSuchOption):
        message += "; a prompt that begins with a dash goes after --"
    elif isinstance(fault, click.BadParameter) and fault.ctx and fault.param and fault.param.name:
        name = fault.param.name
        if fault.ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
            return f"in STREAMCLI_{name.upper()}: {message}"
    return message


def _with_values(argv: list[str]) -> list[str]:
    """Give the options of BARE that have no value the one that this means: a prompt is never taken for one.

    Only the word after --local may be its value, and only if it is a model's file.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    words = []
    for word, following in zip(argv[:end], [*argv[1:], ""], strict=False):
        bare = BARE.get(word.removeprefix("--")) if word.startswith("--") else None
        has_value = bare is None or (word == "--local" and following.lower().endswith(".gguf"))
        words.append(word if has_value else f"{word}={bare}")
    return words + argv[end:]


def _collect(**values: Any) -> Args:
    from . import config, settings  # noqa: PLC0415 - --help needs none of it

    configured, prices = config.configured(values["config"], values["profile"], OPTIONS, BARE)
    given = [*_given(values), *configured]
    found = settings.in_force(given, EXCLUSIVE)
    for one, other in EXCLUSIVE:
        if found[one].is_given and found[other].is_given:
            raise UsageError(f"{_long(one)} and {_long(other)} cannot be used together")
    found |= {name: found[name]._replace(value=_with_dash(found[name].value)) for name in _KNOW_DASH}
    values.update({name: setting.value for name, setting in found.items()})
    for name, value in values.items():
        if name not in _MAY_BE_EMPTY and (value == "" or (isinstance(value, tuple) and "" in value)):
            raise UsageError(f"{_long(name)} must not be empty")
    for name, other in _NEEDS:
        if found[name].place == settings.Place.COMMAND_LINE and not found[other].is_given:
            raise UsageError(f"{_long(name)} needs {_long(other)}")
    formats = [name for name in OUTPUT_FORMATS if values.pop(name)]
    values["output_format"] = formats[0] if formats else "text"
    values["fail_on"] = _listed(values["fail_on"])
    return Args(**values, prices=prices, settings=found)


def _given(values: Mapping[str, Any]) -> Iterator[Setting]:
    """What the command line and variables set, and the defaults of all other options."""
    from streamcli.protocol.userinput import variable  # noqa: PLC0415 - --help needs none of it

    from .settings import Place, Setting  # noqa: PLC0415

    context = click.get_current_context()
    places: dict[ParameterSource | None, tuple[Place, str]] = {
        ParameterSource.ENVIRONMENT: (Place.VARIABLE, "STREAMCLI_{}"),
        ParameterSource.COMMANDLINE: (Place.COMMAND_LINE, "command line"),
    }
    for option in OPTIONS:
        name = option.name or ""
        place, origin = places.get(context.get_parameter_source(name), (Place.DEFAULT, "default"))
        yield Setting(name, values[name], place, origin.format(name.upper()))
    for name, known_as in _SHARED_VARIABLES.items():
        if value := variable(os.environ, known_as):
            yield Setting(name, value, Place.SHARED_VARIABLE, known_as)


def _listed(given: str) -> frozenset[str]:
    """The stop reasons of --fail-on."""
    words = frozenset(filter(None, given.replace(" ", "").split(",")))
    if not words or ("none" in words and len(words) > 1):
        raise UsageError("--fail-on needs stop reasons, separated by commas, or none alone")
    return words - {"none"}


def _with_dash(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_with_dash, value))
    return "-" if value in STANDARD_INPUT else value


def _long(name: str) -> str:
    return "--" + name.replace("_", "-")
