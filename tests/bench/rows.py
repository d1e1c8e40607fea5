"""The rows of the table: which contenders do the same work, how each is measured, and what streamcli must reach."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from link import far_server
from measure import SKIPPED_DELTAS, Commands, WorkError
from server import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = Path(__file__).absolute().parent / "peers"

SHORT, LONG = 20, 50_000
# What the plots show: answers of so many deltas, and a link of these.
COUNTS = (100, 1000, 5000, 20_000, LONG)
PLOTTED_LINK = 40
TOOL_BYTES = 1 << 20
TINY_EVENTS = 100_000
BULK_BYTES = 1_000_000_000
# Slow enough that the slowest contender keeps up: one that lags gets several events a read, which is less work.
STREAMS, STREAM_DELTAS, STREAM_INTERVAL = 500, 30, 200_000
LATENCY_DELTAS, LATENCY_INTERVAL = 1000, 2000
# The milliseconds of a round trip, and how many times what a peer takes a run may. Nobody can do without three round
# trips, which are three quarters of what the script takes over 150 ms.
LINKS = {40: {"curl": 2, "script": 0.75}, 150: {"curl": 1.3, "script": 0.9}}
STDIN_BYTES = 27_000_000

_CURL = "curl -sSN -d '{}' -H 'content-type: application/json' $0/v1/messages | "
_JQ = "sed -un 's/^data: //p' | jq --unbuffered -rj '.delta.text // empty'"
CURL_SED = _CURL + r"""sed -un 's/.*"text":"\(.*\)\\n"}}$/\1/p'"""
CURL_JQ = _CURL + _JQ


class Contender(NamedTuple):
    """One way to do a row's work: `measure` gives one figure, `needs` names the peers it stands on."""

    name: str
    measure: Callable[[], float]
    needs: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return not self.needs


class Limit(NamedTuple):
    """`subject` may be at most `factor` times `peer`, or `factor` itself where there is no peer.

    "At least 8 times as fast as" is a factor of 1/8.
    """

    subject: str
    factor: float
    peer: str = ""

    @property
    def inverted(self) -> bool:
        """Whether people say it the other way round."""
        return bool(self.peer) and self.factor < 0.2

    def __str__(self) -> str:
        if self.inverted:
            return f"{self.peer} ≥ {1 / self.factor:g} x"
        return f"≤ {self.factor:g} x {self.peer}" if self.peer else f"≤ {self.factor:g}"

    def stand(self, figure: float, peer: float) -> float:
        """How much of the limit is used up: it holds up to 1."""
        return figure / (self.factor * peer)

    def shown(self, stand: float) -> str:
        """Where the figure stands, in the words of the limit."""
        value = stand * self.factor
        number = 1 / value if self.inverted else value
        return f"{number:.3g}{' x' if self.peer else ''}" if number < 1000 else f"{number:.0f}"


class Row(NamedTuple):
    """A line of the table; `most_runs` keeps down what is slow and hardly varies."""

    work: str
    unit: str
    contenders: list[Contender]
    limits: list[Limit]
    most_runs: int = 1000


class Bench:
    """Knows where everything is: the peers `found`, the server at `url`, the streamcli of `python`.

    What a row has to start is closed with `stack`.
    """

    def __init__(self, commands: Commands, found: dict[str, Path], url: str, python: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.commands = commands
        self.found = {**found, "click": python}
        self.url = url
        self.python = python
        script = python.with_name("streamcli")
        self.streamcli = [script] if script.exists() else [python, "-m", "streamcli"]

    def version(self) -> str:
        """What the streamcli that is measured says of itself."""
        return self.commands.output([*self.streamcli, "--version"]).decode().strip()

    def _peer(self, name: str, script: str, *arguments: object) -> list:
        python = self.found[name] / "bin/python" if name in self.found else name
        return [python, PEERS / script, *map(str, arguments)]

    def _node(self, name: str, script: str, *arguments: object) -> list:
        """Node looks for a module's imports beside the module, so the script must lie beside node_modules."""
        if name not in self.found:
            return []
        copy = self.found[name] / script
        copy.write_bytes((PEERS / script).read_bytes())
        return ["node", copy, *map(str, arguments)]

    def _command(self, path: str, *options: str, url: str = "") -> list:
        return [*self.streamcli, "--base-url", (url or self.url) + path, *options, "hi"]

    def _library(self, *arguments: object) -> list:
        return [self.python, PEERS / "streamcli_library.py", *map(str, arguments)]

    def _llm(self) -> list:
        """llm knows no base URL, but the SDK under it takes one from the environment."""
        return [self.found["llm"] / "bin/llm" if "llm" in self.found else "llm", "-m", "claude-sonnet-4.5"]

    def _run(self, name: str, command: list, needs: tuple[str, ...] = (), expect: str | None = None) -> Contender:
        """A contender by wall time; the first run, which is not counted, is also looked at for what it printed."""
        unchecked = [expect] if expect is not None else []

        def measure() -> float:
            while unchecked:
                if self.commands.output(command).decode().strip() != unchecked.pop():
                    raise WorkError(f"{name} printed something else")
            return 1000 * self.commands.seconds(command)

        return Contender(name, measure, needs)

    def _number(self, name: str, command: list, needs: tuple[str, ...] = (), scale: float = 1000) -> Contender:
        return Contender(name, lambda: scale * self.commands.number(command), needs)

    def startup(self, option: str) -> Row:
        contenders = [
            self._run("import click", [self.python, "-c", "import click"], ("click",)),
            self._run("streamcli", [*self.streamcli, option]),
        ]
        return Row(f"`{option}`", "ms", contenders, [Limit("streamcli", 1.25, "import click")])

    def oneshot(self) -> Row:
        url, text = f"{self.url}/instant", _text(SHORT)
        contenders = [
            self._run("script", self._peer("script", "httpx_sse_orjson.py", "text", url), ("script",), text),
            self._run("Node SDK", self._node("node-sdk", "sdk.mjs", url), ("node", "node-sdk"), text),
            self._run("SDK", self._peer("anthropic", "anthropic_sdk.py", "text", url), ("anthropic",), text),
            self._run("llm", [*self._llm(), "hi"], ("llm",), text),
            self._run("streamcli", self._command("/instant"), expect=text),
        ]
        limits = [
            Limit("streamcli", 1.15, "script"),
            Limit("streamcli", 1 / 8, "SDK"),
            Limit("streamcli", 1 / 12, "llm"),
        ]
        return Row("whole one-shot run, instant loopback server", "ms", contenders, limits)

    def link(self, milliseconds: int) -> Row:
        far = self._stack.enter_context(far_server(milliseconds, self.commands.folder))
        url, text = f"{far.url}/instant", _text(SHORT)
        trusting = ["env", f"SSL_CERT_FILE={far.authorities}", f"NODE_EXTRA_CA_CERTS={far.authorities}"]
        curl = ["curl", "-sSN", "-d", "{}", "-H", "content-type: application/json", f"{url}/v1/messages"]
        script = self._peer("script", "httpx_sse_orjson.py", "text", url)
        sdk = self._peer("anthropic", "anthropic_sdk.py", "text", url)
        contenders = [
            self._run("curl", [*trusting, *curl], ("curl",)),
            self._run("script", [*trusting, *script], ("script",), text),
            self._run("Node SDK", [*trusting, *self._node("node-sdk", "sdk.mjs", url)], ("node", "node-sdk"), text),
            self._run("SDK", [*trusting, *sdk], ("anthropic",), text),
            self._run("streamcli", [*trusting, *self._command("/instant", url=far.url)], expect=text),
        ]
        limits = [Limit("streamcli", factor, peer) for peer, factor in LINKS[milliseconds].items()]
        return Row(f"whole one-shot run, TLS, a round trip of {milliseconds} ms", "ms", contenders, limits)

    def deltas(self, count: int = LONG) -> Row:
        url, text = f"{self.url}/text/{count}", _text(count)
        jq = ["sh", "-c", CURL_JQ, url]
        contenders = [
            self._run("bare httpx", self._peer("script", "httpx_raw.py", url), ("script",)),
            self._run("script", self._peer("script", "httpx_sse_orjson.py", "text", url), ("script",), text),
            self._run("Node SDK", self._node("node-sdk", "sdk.mjs", url), ("node", "node-sdk"), text),
            self._run("curl|sed|jq", jq, ("curl", "sed", "jq"), text),
            self._run("SDK", self._peer("anthropic", "anthropic_sdk.py", "text", url), ("anthropic",), text),
            self._run("llm", ["env", f"ANTHROPIC_BASE_URL={url}", *self._llm(), "hi"], ("llm",), text),
            self._run("streamcli", self._command(f"/text/{count}"), expect=text),
        ]
        limits = [Limit("streamcli", 0.6, "Node SDK"), Limit("streamcli", 1 / 20, "SDK")]
        return Row(f"{count:,} text deltas, text mode, whole run", "ms", contenders, limits)

    def latency(self) -> Row:
        path = f"/paced/{LATENCY_DELTAS + SKIPPED_DELTAS}/{LATENCY_INTERVAL}"
        url = self.url + path
        commands = {
            "curl|sed": (["sh", "-c", CURL_SED, url], ("curl", "sed")),
            "curl|jq": (["sh", "-c", CURL_JQ, url], ("curl", "sed", "jq")),
            "SDK": (self._peer("anthropic", "anthropic_sdk.py", "text", url), ("anthropic",)),
            "streamcli": (self._command(path), ()),
        }
        contenders = [
            Contender(name, lambda command=command: self.commands.latency(command), needs)
            for name, (command, needs) in commands.items()
        ]
        return Row("added latency, a delta each 2 ms, p50", "µs", contenders, [Limit("streamcli", 1.1, "curl|sed")])

    def tool(self) -> Row:
        url, twice, eighth = (f"{self.url}/tool/{size}" for size in (TOOL_BYTES, TOOL_BYTES * 2, TOOL_BYTES // 8))
        contenders = [
            self._number("SDK, 1/8 MiB", self._peer("anthropic", "anthropic_sdk.py", "tool", eighth), ("anthropic",)),
            self._number("library", self._library("tool", url)),
            self._number("library, twice", self._library("tool", twice)),
            self._run("`--message`", self._command(f"/tool/{TOOL_BYTES}", "--message")),
            self._run("`--message`, twice", self._command(f"/tool/{TOOL_BYTES * 2}", "--message")),
        ]
        limits = [
            Limit("library", 300),
            Limit("library, twice", 2.2, "library"),
            Limit("`--message`", 300),
            Limit("`--message`, twice", 2.2, "`--message`"),
        ]
        return Row("1 MiB tool input in 20-byte deltas, an array", "ms", contenders, limits)

    def decoder(self) -> Row:
        count = TINY_EVENTS
        warm, cold = (self._node("eventsource-parser", "parser.mjs", count, runs) for runs in (5, 0))
        contenders = [
            self._number("eventsource-parser", warm, ("node", "eventsource-parser")),
            self._number("the same, first run", cold, ("node", "eventsource-parser")),
            self._number("httpx-sse", self._peer("script", "httpx_sse_orjson.py", "decode", count), ("script",)),
            self._number("SDK", self._peer("anthropic", "anthropic_sdk.py", "decode", count), ("anthropic",)),
            self._number("streamcli", self._library("decode", count)),
        ]
        limits = [Limit("streamcli", 0.25, "httpx-sse"), Limit("streamcli", 2, "eventsource-parser")]
        return Row("decoder alone, 100k tiny events, 64 KiB reads", "ms", contenders, limits)

    def bulk(self) -> Row:
        commands = {
            f"{mode}, {share}": self._command(f"/bulk/{size}", *options)
            for mode, options in (("text", ()), ("events", ("--events",)))
            for share, size in (("1/8 GB", BULK_BYTES // 8), ("1 GB", BULK_BYTES))
        }
        contenders = [
            Contender(name, lambda command=command: self.commands.peak_mib(command))
            for name, command in commands.items()
        ]
        limits = [Limit(f"{mode}, 1 GB", 35) for mode in ("text", "events")]
        limits += [Limit(f"{mode}, 1 GB", 1.05, f"{mode}, 1/8 GB") for mode in ("text", "events")]
        return Row("peak RSS of 1 GB of stream", "MiB", contenders, limits, most_runs=1)

    def streams(self) -> Row:
        url = f"{self.url}/streams/{STREAMS}/{STREAM_DELTAS}/{STREAM_INTERVAL}"
        scale = 1e6 / (STREAMS * STREAM_DELTAS)
        arguments = ("streams", url, STREAMS)
        raw = self._peer("script", "asyncio_raw.py", *arguments)
        sdk = self._peer("anthropic", "anthropic_sdk.py", *arguments)
        contenders = [
            self._number("raw asyncio", raw, ("script",), scale),
            self._number("AsyncAnthropic", sdk, ("anthropic",), scale),
            self._number("streamcli", self._library(*arguments), scale=scale),
        ]
        limits = [Limit("streamcli", 2, "raw asyncio"), Limit("streamcli", 0.6, "AsyncAnthropic")]
        return Row("500 concurrent paced streams, CPU per event", "µs", contenders, limits)

    def stdin(self) -> Row:
        source = self.commands.folder / "stdin.txt"
        source.write_bytes((" ".join(WORDS).encode() + b"\n") * (STDIN_BYTES // (len(" ".join(WORDS)) + 1)))
        contenders = [
            Contender("llm", lambda: self.commands.peak_mib(self._llm(), source), ("llm",)),
            Contender("streamcli", lambda: self.commands.peak_mib(self._command("/instant"), source)),
        ]
        return Row("peak RSS with 27 MB of stdin", "MiB", contenders, [Limit("streamcli", 143)], most_runs=5)


def rows() -> dict[str, Callable[[Bench], Row]]:
    """Every row by its name on the command line, in the table's order."""
    return {
        "help": lambda bench: bench.startup("--help"),
        "version": lambda bench: bench.startup("--version"),
        "oneshot": Bench.oneshot,
        **{f"link{milliseconds}": partial(Bench.link, milliseconds=milliseconds) for milliseconds in LINKS},
        "deltas": Bench.deltas,
        "latency": Bench.latency,
        "tool": Bench.tool,
        "decoder": Bench.decoder,
        "bulk": Bench.bulk,
        "streams": Bench.streams,
        "stdin": Bench.stdin,
    }


def _text(count: int) -> str:
    return " ".join(itertools.islice(itertools.cycle(WORDS), count))
