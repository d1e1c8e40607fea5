"""The body of a Messages request as JSON Schema, as the API documents it: what a loopback server checks.

Everything is closed here that is closed there, so that a misspelt or misplaced field is found.
"""

import jsonschema
from server import Server, error_response, ok, text_stream


def shape(required=(), /, **properties):
    """An object of these properties and no others."""
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False
    }  # fmt: skip


def kind(name, /, *required, **properties):
    """An object with that `type`."""
    return shape(["type", *required], type={"const": name}, **properties)


def listed(items, least=0):
    return {"type": "array", "items": items, "minItems": least}


TEXT = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
ANY = {"type": "object"}
CACHE = kind("ephemeral", ttl={"enum": ["5m", "1h"]})
BASE64 = {"type": "string", "pattern": r"^[A-Za-z0-9+/]+={0,2}$"}
URL = {"type": "string", "pattern": "^https?://"}

IMAGE_TYPES = {"enum": ["image/jpeg", "image/png", "image/gif", "image/webp"]}
URL_SOURCE = kind("url", "url", url=URL)
FILE_SOURCE = kind("file", "file_id", file_id={"type": "string", "pattern": "^file_"})
IMAGE_SOURCE = {
    "oneOf": [kind("base64", "media_type", "data", media_type=IMAGE_TYPES, data=BASE64), URL_SOURCE, FILE_SOURCE]
}
DOCUMENT_SOURCE = {
    "oneOf": [
        kind("base64", "media_type", "data", media_type={"const": "application/pdf"}, data=BASE64),
        kind("text", "media_type", "data", media_type={"const": "text/plain"}, data=TEXT),
        URL_SOURCE,
        FILE_SOURCE,
    ]
}
TEXT_BLOCK = kind("text", "text", text=TEXT, cache_control=CACHE)
IMAGE = kind("image", "source", source=IMAGE_SOURCE)
DOCUMENT = kind("document", "source", source=DOCUMENT_SOURCE, title=TEXT, context=TEXT)
TOOL_USE = kind("tool_use", "id", "name", "input", id=TEXT, name=TEXT, input=ANY, caller=ANY, toolset_name=TEXT)
TOOL_RESULT = kind(
    "tool_result", "tool_use_id", tool_use_id=TEXT, is_error=FLAG, toolset_name=TEXT,
    content={"oneOf": [TEXT, listed({"oneOf": [TEXT_BLOCK, IMAGE, DOCUMENT]})]},
)  # fmt: skip
THINKING_BLOCK = kind("thinking", "thinking", "signature", thinking={"type": "string"}, signature={"type": "string"})

USER = {"oneOf": [TEXT, listed({"oneOf": [TEXT_BLOCK, IMAGE, DOCUMENT, TOOL_RESULT]}, 1)]}
ASSISTANT = {"oneOf": [TEXT, listed({"oneOf": [TEXT_BLOCK, TOOL_USE, THINKING_BLOCK]}, 1)]}
MESSAGE = {
    "oneOf": [
        shape(["role", "content"], role={"const": "user"}, content=USER),
        shape(["role", "content"], role={"const": "assistant"}, content=ASSISTANT),
    ]
}

DISPLAY = {"enum": ["summarized", "omitted"]}
THINKING = {
    "oneOf": [
        kind("adaptive", display=DISPLAY),
        kind("enabled", "budget_tokens", budget_tokens={"type": "integer", "minimum": 1024}, display=DISPLAY),
        kind("disabled"),
        kind("between_tools"),
    ]
}
OUTPUT = shape(
    effort={"enum": ["low", "medium", "high", "xhigh", "max"]}, format=kind("json_schema", "schema", schema=ANY)
)
PARALLEL = {"disable_parallel_tool_use": FLAG}
CHOICE = {
    "oneOf": [
        kind("auto", **PARALLEL), kind("any", **PARALLEL), kind("tool", "name", name=TEXT, **PARALLEL), kind("none")
    ]
}  # fmt: skip
TOOL = shape(
    ["name", "input_schema"], name=TEXT, description=TEXT, type={"const": "custom"}, strict=FLAG, cache_control=CACHE,
    input_schema={"type": "object", "properties": {"type": {"const": "object"}}, "required": ["type"]},
)  # fmt: skip

REQUEST = shape(
    ["model", "max_tokens", "messages"],
    model=TEXT, max_tokens=COUNT, messages=listed(MESSAGE, 1), stream=FLAG,
    system={"oneOf": [TEXT, listed(TEXT_BLOCK, 1)]}, stop_sequences=listed(TEXT), metadata=shape(user_id=TEXT),
    thinking=THINKING, output_config=OUTPUT, tools=listed(TOOL), tool_choice=CHOICE, cache_control=CACHE,
    container=TEXT, inference_geo=TEXT, service_tier={"enum": ["auto", "standard_only"]},
    speed={"enum": ["standard", "fast"]},
)  # fmt: skip


def faults(body):
    """What is wrong with a request's body, a line each; nothing where the API would take it."""
    found = [
        f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}"
        for fault in jsonschema.Draft202012Validator(REQUEST).iter_errors(body)
    ]
    budget = (body.get("thinking") or {}).get("budget_tokens", 0)
    if budget and budget >= body.get("max_tokens", 0):
        found.append("thinking.budget_tokens: not below max_tokens")
    if body.keys() & {"temperature", "top_p", "top_k"}:
        found.append("temperature, top_p and top_k are no parameters of this version")
    return [*found, *_unanswered(body.get("messages", []))]


def _unanswered(messages):
    """Calls that the next message does not answer: the API refuses them."""
    for place, message in enumerate(messages[:-1]):
        calls = _ids(message, "tool_use", "id")
        answered = _ids(messages[place + 1], "tool_result", "tool_use_id")
        yield from (f"messages.{place}: {call} has no result" for call in calls if call not in answered)


def _ids(message, name, key):
    blocks = message["content"] if isinstance(message["content"], list) else []
    return [block[key] for block in blocks if block["type"] == name]


class StrictServer(Server):
    """Answers as `answers` say where the body is one that the API takes, and refuses any other as the API does."""

    def __init__(self, *answers):
        super().__init__(*[self._checked(answer) for answer in answers or (ok(text_stream("fine")),)])

    @staticmethod
    def _checked(answer):
        def answered(request):
            wrong = faults(request.json)
            if wrong:
                return error_response(400, message="; ".join(wrong))
            return answer(request) if callable(answer) else answer

        return answered
