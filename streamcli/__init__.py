"""Send a prompt to a Messages endpoint and stream the answer.

The command is `streamcli`; the library is `Client`, `AsyncClient` and the exceptions of `streamcli.errors`. Importing
this package loads nothing but the standard library until one of its names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncClient, AsyncMessageStream, Client, MessageStream
    from .errors import (
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ConflictError,
        ContentTooLargeError,
        GatewayTimeoutError,
        IncompleteStreamError,
        InternalServerError,
        NotFoundError,
        OutputError,
        OverloadedError,
        PaymentRequiredError,
        PermissionDeniedError,
        ProtocolError,
        RateLimitError,
        RequestTimeoutError,
        SchemaError,
        ServiceUnavailableError,
        ShapeError,
        StreamcliError,
        StreamError,
        ToolError,
        UnexpectedAnswerError,
        UnprocessableEntityError,
        UsageError,
    )
    from .records import ContentBlock, Delta, Event, Message, Usage

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AsyncMessageStream",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ConflictError",
    "ContentBlock",
    "ContentTooLargeError",
    "Delta",
    "Event",
    "GatewayTimeoutError",
    "IncompleteStreamError",
    "InternalServerError",
    "Message",
    "MessageStream",
    "NotFoundError",
    "OutputError",
    "OverloadedError",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitError",
    "RequestTimeoutError",
    "SchemaError",
    "ServiceUnavailableError",
    "ShapeError",
    "StreamError",
    "StreamcliError",
    "ToolError",
    "UnexpectedAnswerError",
    "UnprocessableEntityError",
    "Usage",
    "UsageError",
]

__version__ = "0.1.0"

_HOMES = {
    "client": ("AsyncClient", "AsyncMessageStream", "Client", "MessageStream"),
    "records": ("ContentBlock", "Delta", "Event", "Message", "Usage"),
}
_CLIENT_AND_RECORDS = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_CLIENT_AND_RECORDS.get(name, 'errors')}", __name__), name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
