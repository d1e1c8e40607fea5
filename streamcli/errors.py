"""Every error this package reports, each with the exit status of the command.

What is known of a fault goes in; one line comes out that names what happened, where, and what to do. Nothing is read or
written here, and only the standard library is imported.

::

    StreamcliError                          1   unexpected
    ├── APIError                            1   a call failed; .message .request_id .partial
    │   ├── UsageError                      2   the call could not be made: key, address, option
    │   ├── APIConnectionError              6   connect, TLS, DNS, proxy, or cut before the response's head
    │   │   └── APITimeoutError             7   connect, idle or total timeout
    │   ├── APIStatusError                  3   an error response; .status_code .type
    │   │   ├── BadRequestError                 400 invalid_request_error
    │   │   ├── AuthenticationError         4   401 authentication_error
    │   │   ├── PaymentRequiredError            402 billing_error
    │   │   ├── PermissionDeniedError       4   403 permission_error
    │   │   ├── NotFoundError                   404 not_found_error
    │   │   ├── RequestTimeoutError         5   408
    │   │   ├── ConflictError               5   409 conflict_error
    │   │   ├── ContentTooLargeError            413 request_too_large
    │   │   ├── UnprocessableEntityError        422
    │   │   ├── RateLimitError              5   429 rate_limit_error
    │   │   └── InternalServerError         5   500 and above, api_error, timeout_error
    │   │       ├── ServiceUnavailableError     503
    │   │       ├── GatewayTimeoutError         504 timeout_error
    │   │       └── OverloadedError             529 overloaded_error
    │   ├── UnexpectedResponseError           3   a response that is not an event stream
    │   └── StreamError                     8   the stream began, but not all of it can be trusted
    │       ├── IncompleteStreamError           it ended before message_stop
    │       └── ProtocolError                   it broke the rules of the wire
    ├── OutputError                         10  the answer could not be written
    └── ShapeError                          11  the answer is complete, but not what was asked for
        ├── ToolError                           the model still calls tools after --max-turns
        └── SchemaError                         it is not JSON, or has no fenced block
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping


_EXCERPT = 120
_RETRIED = frozenset({408, 409, 429})
# Waiting cannot lift a spending limit (streamcli(7), section "What is retried").
HOPELESS = frozenset({"contract_spend_limit_reached", "enforced_spend_limit_reached"})
# Which class a status has, and which status an `error.type` of the API.
_BY_STATUS: dict[int, type[APIStatusError]] = {}
_STATUS_OF_TYPE: dict[str, int] = {}


def reason(fault: BaseException) -> str:
    """Why a system call or a parser failed, in its own words, for a line of ours."""
    text = getattr(fault, "strerror", None) or str(fault)
    return text[:1].lower() + text[1:]


def excerpt(text: str) -> str:
    """The beginning of a text that somebody else wrote, on one line, as part of a line of ours."""
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[:_EXCERPT] + "…"


class StreamcliError(Exception):
    """Anything this package raises. `exit_code` is the status the command ends with."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal_error"
    # Whether another attempt, now or later, could end differently.
    retryable = False
    # The server's id for the call, where one was made.
    request_id: str | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        # The error's name for programs: the API's `error.type`, or one that begins with `streamcli.`.
        self.type: str | None = f"streamcli.{self.code}"

    def evidence(self, exit_code: int | None = None) -> dict[str, Any]:
        """What a script needs to decide what to do next, as JSON values; None for what is not known.

        `exit_code` is the status that the command ends with, if it is not the error's own.
        """
        status = self.exit_code if exit_code is None else exit_code
        return {
            "type": self.type or f"streamcli.{self.code}",
            "status": getattr(self, "status_code", None),
            "message": self.message,
            "request_id": self.request_id,
            "retryable": self.retryable or status == APITimeoutError.exit_code,  # what is slow now may be quick later
            "retry_after": getattr(self, "retry_after", None),
            "details": getattr(self, "details", None) or None,
            "stop_details": getattr(self, "stop_details", None),
            "exit_code": status,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return Exception.__new__, (type(self), *self.args), vars(self)  # the constructors take more than that


class APIError(StreamcliError):
    """A call that failed.

    `message` is one line; `request_id` is the server's id for the call, or None; `partial` is the message so far, as
    `MessageStream.current_message_snapshot` has it, or None if there was no message_start. `retryable` says whether
    another attempt could end differently.
    """

    def __init__(
        self, message: str, *, request_id: str | None = None, partial: Any = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.partial = partial
        if retryable is not None:
            self.retryable = retryable

    def _known(self) -> list[str]:
        """What follows the message in parentheses."""
        return [f"request_id {self.request_id}"] if self.request_id else []

    def __str__(self) -> str:
        known = ", ".join(self._known())
        return f"{self.message} ({known})" if known else self.message


class UsageError(APIError):
    """The call could not be made as asked: a missing key, a URL without scheme, an option out of range."""

    exit_code = 2
    code = "usage_error"


class APIConnectionError(APIError):
    """No response: name lookup, connect, TLS, proxy, or the connection ended before the response's head was whole."""

    exit_code = 6
    code = "connection_error"
    retryable = True


class APITimeoutError(APIConnectionError):
    """A timeout passed; the message names which: connect, idle or total."""

    exit_code = 7
    code = "timeout_error"


class APIStatusError(APIError):
    """An error response, or an `error` event inside a stream.

    `status_code` is the HTTP status; for an `error` event it is the status that belongs to `type`, or 200 for a type
    nobody knows. `type` is the API's `error.type`, or None where the body had none. `headers` are the response's,
    `body` is its parsed JSON or its text, `data` that of an `error` event as it was sent. `retry_after` is the
    wait in seconds that the server asks for, or None.
    """

    exit_code = 3
    code = "status_error"
    retry_after: float | None = None
    data: bytes | None = None

    def __init_subclass__(cls, *, status: int = 0, kind: str = "") -> None:
        if status:
            _BY_STATUS[status] = cls
        if kind:
            _STATUS_OF_TYPE[kind] = status

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        type: str | None = None,  # noqa: A002 - the API's own word for it
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
        body: Any = None,
        in_stream: bool = False,
        **evidence: Any,
    ) -> None:
        super().__init__(message, **evidence)
        self.status_code = status_code
        self.headers = headers or {}
        self.details = details or {}
        self.body = body
        self.in_stream = in_stream
        self.type = type
        self.retryable = self._may_pass()

    def _may_pass(self) -> bool:
        advice = self.headers.get("x-should-retry")
        if advice in {"true", "false"}:
            return advice == "true"
        if self.is_hopeless:
            return False
        # An error event of a type nobody knows has no status of its own.
        return self.status_code in _RETRIED or self.status_code >= 500 or (self.in_stream and self.status_code == 200)

    @property
    def is_hopeless(self) -> bool:
        """Whether no waiting can lift the limit that was met."""
        code = self.details.get("error_code")
        return isinstance(code, str) and code in HOPELESS

    def _known(self) -> list[str]:
        said = ((key, value) for key, value in self.details.items() if type(value) in {str, int, float})
        return [f"{excerpt(key)} {excerpt(str(value))}" for key, value in said] + super()._known()

    def __str__(self) -> str:
        where = "error event" if self.in_stream else f"status {self.status_code}"
        kind = f"{where} {self.type}" if self.type else where
        return f"{kind}: {super().__str__()}"


class BadRequestError(APIStatusError, status=400, kind="invalid_request_error"):
    """400: the request is wrong and will stay so."""


class AuthenticationError(APIStatusError, status=401, kind="authentication_error"):
    """401: the key is missing, wrong or expired."""

    exit_code = 4


class PaymentRequiredError(APIStatusError, status=402, kind="billing_error"):
    """402: billing."""


class PermissionDeniedError(APIStatusError, status=403, kind="permission_error"):
    """403: the key may not do this."""

    exit_code = 4


class NotFoundError(APIStatusError, status=404, kind="not_found_error"):
    """404: no such model or path."""


class RequestTimeoutError(APIStatusError, status=408):
    """408: the server timed out waiting for the request."""

    exit_code = 5


class ConflictError(APIStatusError, status=409, kind="conflict_error"):
    """409: the request conflicts with another one."""

    exit_code = 5


class ContentTooLargeError(APIStatusError, status=413, kind="request_too_large"):
    """413: the request is too large."""


class UnprocessableEntityError(APIStatusError, status=422):
    """422: the request was understood and rejected."""


class RateLimitError(APIStatusError, status=429, kind="rate_limit_error"):
    """429: too many requests or tokens."""

    exit_code = 5


class InternalServerError(APIStatusError, status=500, kind="api_error"):
    """500 and above: the server failed."""

    exit_code = 5


class ServiceUnavailableError(InternalServerError, status=503):
    """503: the server cannot take the request now."""


class GatewayTimeoutError(InternalServerError, status=504, kind="timeout_error"):
    """504: something behind the server took too long."""


class OverloadedError(InternalServerError, status=529, kind="overloaded_error"):
    """529: the API is overloaded."""


class UnexpectedResponseError(APIError):
    """The response is not an event stream: another content type, another coding, or not HTTP at all."""

    exit_code = 3
    code = "unexpected_response"


class StreamError(APIError):
    """The stream began, but not all of it can be trusted."""

    exit_code = 8
    code = "stream_error"
    retryable = True


class IncompleteStreamError(StreamError):
    """The stream ended before `message_stop`; what arrived is in `partial`."""

    code = "incomplete_stream"


class ProtocolError(StreamError):
    """The stream is malformed: it broke the rules of the wire; nothing after that counts."""

    code = "protocol_error"


def malformed(what: str) -> ProtocolError:
    """The error of a stream that holds `what`, which breaks the rules of the wire."""
    return ProtocolError(f"the stream is malformed: {what}")


class OutputError(StreamcliError):
    """The answer could not be written: disk full, closed descriptor, device error."""

    exit_code = 10
    code = "output_error"


class ShapeError(StreamcliError):
    """The message is complete, but not what was asked for."""

    exit_code = 11
    code = "shape_error"


class ToolError(ShapeError):
    """The model still calls tools after --max-turns, or a call cannot be passed on."""

    code = "tool_error"


class SchemaError(ShapeError):
    """The text is not the JSON value of --schema, or lacks the fenced block of --extract."""

    code = "schema_error"


def status_before_output(error: StreamcliError) -> int:
    """The exit status of an error before any output; an error event of a type nobody knows has the HTTP status 200."""
    return InternalServerError.exit_code if getattr(error, "status_code", None) == 200 else error.exit_code


def type_of_status(status_code: int) -> str | None:
    """The API's `error.type` for an error response without one, or None for a status that has none."""
    known = {408: "timeout_error"} | {status: kind for kind, status in _STATUS_OF_TYPE.items()}
    return known.get(status_code) or ("api_error" if status_code >= 500 else None)


def status_error(
    status_code: int | None,
    body: Any,
    *,
    headers: Mapping[str, str] | None = None,
    request_id: str | None = None,
) -> APIStatusError:
    """The error that an error response or an `error` event is; streamcli(7), section "Error responses".

    `status_code` is the HTTP status, or None for an `error` event, whose class is chosen by `error.type`, or by a code
    that is an HTTP status. `body` is the parsed JSON, or the text of a body that is not JSON. Its words are found where
    servers put them. Never raises, whatever the body holds.
    """
    fields = _error_fields(body)
    kind, details = fields.get("type"), fields.get("details")
    kind = kind if isinstance(kind, str) and kind != "error" else None
    if request_id is None and isinstance(body, dict) and isinstance(body.get("request_id"), str):
        request_id = body["request_id"]
    status = status_code or _STATUS_OF_TYPE.get(kind or "") or _status_code(fields.get("code")) or 200
    cls = _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)
    return cls(
        _words(fields, body) or "the server gave no reason",
        status_code=status,
        type=kind,
        headers=headers,
        details=details if isinstance(details, dict) else None,
        body=body,
        in_stream=status_code is None,
        request_id=request_id,
    )


def _error_fields(body: Any) -> dict[str, Any]:
    """The object that says what is wrong: the API's `error`, or what other servers put in its place."""
    if not isinstance(body, dict):
        return {"message": body}
    for key in ("error", "message", "detail"):
        if isinstance(body.get(key), dict):
            return {**body[key], "code": body[key].get("code", body.get("code"))}
    return body


def _words(fields: dict[str, Any], body: Any) -> str | None:
    """What the server says, wherever it says it, else the beginning of the whole."""
    for key in ("message", "detail", "error"):
        text = fields.get(key)
        if isinstance(text, str) and text.strip():
            return text
    said = {key: value for key, value in fields.items() if key != "type" and value is not None}
    if not isinstance(body, dict) or not said:
        return None
    import json  # noqa: PLC0415 - for servers that say it in a way of their own

    return excerpt(json.dumps(said, ensure_ascii=False, default=str))


def _status_code(code: Any) -> int | None:
    """A code that is an HTTP status of an error, as a number or as text."""
    text = str(code)
    return int(text) if type(code) in {int, str} and len(text) == 3 and text.isdecimal() and text >= "400" else None
