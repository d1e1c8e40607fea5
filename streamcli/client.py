"""The library: `Client` and `AsyncClient`, thin drivers over `exchange`, side by side.

Contract: the drivers open, read, sleep and close; what any of it means is decided below them. The asynchronous half of
this file is the synchronous one with `async` and `await`, and a test holds it to that. No exception but APIError
leaves. Source: design.md section 3; the surface follows protocol.md section 5.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import httpx

from .errors import APIError, IncompleteStreamError, UsageError
from .exchange import Exchange
from .message import parsed
from .records import Event, Message, Record, events
from .request import DEFAULT_BASE_URL, Endpoint, checked_base_url, credential, custom_headers
from .retry import MAX_RETRIES
from .transport import (
    TIMEOUT,
    abandon,
    async_own_client,
    async_refusal_body,
    async_sleep,
    async_whole_body,
    mapped,
    outgoing,
    own_client,
    refusal_body,
    sleep,
    whole_body,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from .exchange import Received

    Pieces = Generator[bytes, None, None]
    AsyncPieces = AsyncGenerator[bytes, None]

# How many models one page may hold (protocol.md section 8.3).
_PAGE = 1000


class Settings(TypedDict, total=False):
    """What both clients can be told; what is not given comes from the environment.

    `timeout` is in seconds, for connecting and for the silence between two reads (5 and 90 if not given);
    `total_timeout` bounds a whole call. `max_retries` further attempts are made while nothing was received, and
    `on_retry` is told the error and the seconds to wait before each. `allow_http` lets a key go out in clear.
    `endpoint` replaces key, address, headers and version. With `keep_text` false the message keeps no text, for
    streams that are only passed on.
    """

    api_key: str | None
    auth_token: str | None
    base_url: str | None
    timeout: float | httpx.Timeout | None
    total_timeout: float | None
    max_retries: int
    default_headers: Mapping[str, str] | None
    api_version: str | None
    allow_http: bool
    endpoint: Endpoint | None
    on_retry: Callable[[APIError, float], None] | None
    keep_text: bool


class _ClientState:
    """What both clients know: where requests go, with which credential, how long and how often."""

    def __init__(self, settings: Settings) -> None:
        timeout = settings.get("timeout")
        self.endpoint = settings.get("endpoint") or _endpoint(settings)
        self.timeout = TIMEOUT if timeout is None else httpx.Timeout(timeout)
        self.total_timeout = settings.get("total_timeout")
        self.max_retries = settings.get("max_retries", MAX_RETRIES)
        self.on_retry = settings.get("on_retry")
        self.keep_text = settings.get("keep_text", True)

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> Exchange:
        request = self.endpoint.request(method, path, body, **options)
        return Exchange(request, max_retries=self.max_retries, total=self.total_timeout, keep_text=self.keep_text)

    def _next_attempt(self, exchange: Exchange, error: APIError) -> float:
        wait = exchange.failed(error)
        if self.on_retry:
            self.on_retry(error, wait)
        return wait


def _endpoint(settings: Settings) -> Endpoint:
    key, token = settings.get("api_key"), settings.get("auth_token")
    scheme, source = ("bearer", "auth_token") if token and not key else ("", "api_key")
    secret = credential(os.environ, key=key or token, source=source, scheme=scheme)
    given, ambient = settings.get("base_url"), os.environ.get("ANTHROPIC_BASE_URL")
    base_url = checked_base_url(
        given or ambient or DEFAULT_BASE_URL,
        source="base_url" if given else "ANTHROPIC_BASE_URL",
        has_credential=secret is not None,
        allow_http=settings.get("allow_http", False),
    )
    headers = (*custom_headers(os.environ), *(settings.get("default_headers") or {}).items())
    return Endpoint(base_url, secret, settings.get("api_version"), headers)


class _StreamState:
    """What both streams know: the answer's head, and the message so far."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self.response = response
        self.exchange = exchange
        weakref.finalize(self, abandon, response).atexit = False

    @property
    def request_id(self) -> str | None:
        """The server's id for this call, from the `request-id` header."""
        return self.exchange.request_id

    @property
    def current_message_snapshot(self) -> Message:
        """The message as of the event handed out last; it does not change afterwards.

        Raises IncompleteStreamError before message_start.
        """
        snapshot = self.exchange.accumulator.snapshot()
        if snapshot is None:
            raise self.exchange.explained(IncompleteStreamError("no message has started yet"))
        return Message(snapshot)

    def _final_message(self) -> Message:
        self.exchange.end("the stream was closed before message_stop")
        return self.current_message_snapshot


def _records(received: Received, exchange: Exchange) -> Iterable[Event]:
    if received.event is None:
        return [Event(parsed(received.raw.event, received.raw.data))]
    return events(received.event, exchange.accumulator)


def _fields(fields: Mapping[str, Any], extra_body: Mapping[str, Any] | None, *, stream: bool) -> dict[str, Any]:
    if fields.get("stream", stream) is not stream:
        raise UsageError("stream streams and create does not: leave out the field stream")
    body = {**fields, **(extra_body or {})}
    if stream:
        body["stream"] = True
    return body


def _page(path: str, last_id: str | None) -> str:
    return f"{path}?limit={_PAGE}" + (f"&after_id={last_id}" if last_id else "")


# The synchronous half.


class Client(_ClientState):
    """A client of a Messages endpoint.

    Takes the keywords of `Settings`, and `http_client`: an httpx.Client to send through instead of one of our own,
    which `close` leaves open. Raises UsageError for a key or an address that cannot be used.
    """

    def __init__(self, *, http_client: httpx.Client | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__(settings)
        self._owned = http_client is None
        self._http = http_client or own_client(self.endpoint.base_url)

    @property
    def messages(self) -> Messages:
        """The Messages API."""
        return Messages(self)

    @property
    def models(self) -> Models:
        """The Models API."""
        return Models(self)

    @property
    def beta(self) -> Self:
        """The same surface: every call takes `betas`."""
        return self

    def close(self) -> None:
        """Close what this client opened."""
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _send(self, exchange: Exchange) -> httpx.Response:
        with mapped():
            request = outgoing(self._http, exchange, self.timeout)
            return self._http.send(request, stream=True, follow_redirects=False)

    def _open(self, exchange: Exchange) -> httpx.Response:
        while True:
            try:
                response = self._send(exchange)
                if exchange.accepted(response.status_code, response.headers):
                    return response
                body = refusal_body(response)
                raise exchange.refusal(response.status_code, response.headers, body)
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            sleep(wait)

    def _fetch(self, exchange: Exchange) -> Record:
        while True:
            try:
                response = self._send(exchange)
                body = whole_body(response)
                return Record(exchange.answer(response.status_code, response.headers, body))
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            sleep(wait)


class Messages:
    """The Messages API: fields go into the request's body as they are, known or not."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def stream(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> MessageStreamManager:
        """A stream of one answer, as a context manager that sends when it is entered (protocol.md section 2.1).

        `betas` go out as `anthropic-beta`. Raises UsageError for what cannot be sent.
        """
        body = _fields(fields, extra_body, stream=True)
        headers = (extra_headers or {}).items()
        return MessageStreamManager(self._client, body, betas, tuple(headers))

    def create(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Message:
        """One answer, whole. Raises APIError."""
        body = _fields(fields, extra_body, stream=False)
        headers = (extra_headers or {}).items()
        exchange = self._client._exchange("POST", "/v1/messages", body, betas=betas, headers=headers)
        return Message(self._client._fetch(exchange))

    def count_tokens(self, *, betas: Sequence[str] = (), **fields: Any) -> Record:
        """How many `input_tokens` a request would have (protocol.md section 8.2). Raises APIError."""
        exchange = self._client._exchange("POST", "/v1/messages/count_tokens", fields, betas=betas)
        return self._client._fetch(exchange)


class Models:
    """The Models API (protocol.md section 8.3)."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, betas: Sequence[str] = ()) -> Iterator[Record]:
        """Every model, asking for page after page. Raises APIError."""
        last_id = None
        while True:
            exchange = self._client._exchange("GET", _page("/v1/models", last_id), betas=betas)
            page = self._client._fetch(exchange)
            for model in page.get("data") or []:
                yield model
            last_id = page.get("last_id")
            if not page.get("has_more") or not last_id:
                return


class MessageStreamManager:
    """Sends the request when it is entered, each time anew, and closes the stream when it is left."""

    def __init__(
        self, client: Client, body: dict[str, Any], betas: Sequence[str], headers: tuple[tuple[str, str], ...]
    ) -> None:
        self._client = client
        self._ask: tuple[dict[str, Any], dict[str, Any]] = body, {"betas": betas, "headers": headers}
        self._stream: MessageStream | None = None

    def __enter__(self) -> MessageStream:
        body, options = self._ask
        exchange = self._client._exchange("POST", "/v1/messages", body, **options)
        self._stream = MessageStream(self._client, exchange, self._client._open(exchange))
        return self._stream

    def __exit__(self, *exc_info: object) -> None:
        if self._stream:
            self._stream.close()


class MessageStream(_StreamState):
    """The stream of one answer: iterate it for events, or `text_stream` for text; both draw on the same events.

    Each raw event is followed, after a delta, by the derived one (`text`, `input_json`, `thinking`, `signature`,
    `citation`). Iterating raises APIError where the answer fails, with the message so far in `partial`.
    """

    def __init__(self, client: Client, exchange: Exchange, response: httpx.Response) -> None:
        super().__init__(exchange, response)
        self._client = client
        self._events = _iterate(exchange, response)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return self._events.__next__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def text_stream(self) -> Iterator[str]:
        """The text of all text blocks as it comes, nothing between them."""
        return _texts(self)

    def until_done(self) -> None:
        """Read to the end. Raises APIError."""
        for _ in self:
            pass

    def get_final_message(self) -> Message:
        """Read to the end; the whole message. Raises APIError, also after `close` in mid-stream."""
        self.until_done()
        return self._final_message()

    def get_final_text(self) -> str:
        """Read to the end; all text blocks joined. Raises APIError."""
        self.until_done()
        self._final_message()
        return self.exchange.accumulator.text

    def reads(self) -> Iterator[bytes]:
        """The body, a piece for each network read, for who passes it on; each must be given to `exchange.receive`.

        Ends when the message is complete; raises APIError if the body does so before.
        """
        return _read(self.exchange, self.response)

    def retry(self, error: APIError) -> None:
        """Send the request again after `error`, if its kind allows and attempts are left; raises `error` if not.

        Only for who has passed nothing on yet: the stream begins anew.
        """
        wait = self._client._next_attempt(self.exchange, error)
        self.close()
        sleep(wait)
        self.response = self._client._open(self.exchange)
        weakref.finalize(self, abandon, self.response).atexit = False
        self._events = _iterate(self.exchange, self.response)

    def close(self) -> None:
        """Drop the connection; what was not read is lost."""
        self.response.close()


def _read(exchange: Exchange, response: httpx.Response) -> Pieces:
    try:
        with mapped(in_body=True):
            for data in response.iter_raw():
                yield data
                if exchange.complete:
                    break
        exchange.end()
    except APIError as error:
        raise exchange.explained(error) from error.__cause__
    finally:
        response.close()


def _iterate(exchange: Exchange, response: httpx.Response) -> Iterator[Event]:
    with contextlib.closing(_read(exchange, response)) as pieces:
        for data in pieces:
            for received in exchange.receive(data):
                for event in _records(received, exchange):
                    yield event


def _texts(stream: MessageStream) -> Iterator[str]:
    for event in stream:
        if event["type"] == "text":
            yield event["text"]


# The asynchronous half: the same, with async and await.


class AsyncClient(_ClientState):
    """A client of a Messages endpoint.

    Takes the keywords of `Settings`, and `http_client`: an httpx.AsyncClient to send through instead of one of our own,
    which `close` leaves open. Raises UsageError for a key or an address that cannot be used.
    """

    def __init__(self, *, http_client: httpx.AsyncClient | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__(settings)
        self._owned = http_client is None
        self._http = http_client or async_own_client(self.endpoint.base_url)

    @property
    def messages(self) -> AsyncMessages:
        """The Messages API."""
        return AsyncMessages(self)

    @property
    def models(self) -> AsyncModels:
        """The Models API."""
        return AsyncModels(self)

    @property
    def beta(self) -> Self:
        """The same surface: every call takes `betas`."""
        return self

    async def close(self) -> None:
        """Close what this client opened."""
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _send(self, exchange: Exchange) -> httpx.Response:
        with mapped():
            request = outgoing(self._http, exchange, self.timeout)
            return await self._http.send(request, stream=True, follow_redirects=False)

    async def _open(self, exchange: Exchange) -> httpx.Response:
        while True:
            try:
                response = await self._send(exchange)
                if exchange.accepted(response.status_code, response.headers):
                    return response
                body = await async_refusal_body(response)
                raise exchange.refusal(response.status_code, response.headers, body)
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            await async_sleep(wait)

    async def _fetch(self, exchange: Exchange) -> Record:
        while True:
            try:
                response = await self._send(exchange)
                body = await async_whole_body(response)
                return Record(exchange.answer(response.status_code, response.headers, body))
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            await async_sleep(wait)


class AsyncMessages:
    """The Messages API: fields go into the request's body as they are, known or not."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def stream(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> AsyncMessageStreamManager:
        """A stream of one answer, as a context manager that sends when it is entered (protocol.md section 2.1).

        `betas` go out as `anthropic-beta`. Raises UsageError for what cannot be sent.
        """
        body = _fields(fields, extra_body, stream=True)
        headers = (extra_headers or {}).items()
        return AsyncMessageStreamManager(self._client, body, betas, tuple(headers))

    async def create(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Message:
        """One answer, whole. Raises APIError."""
        body = _fields(fields, extra_body, stream=False)
        headers = (extra_headers or {}).items()
        exchange = self._client._exchange("POST", "/v1/messages", body, betas=betas, headers=headers)
        return Message(await self._client._fetch(exchange))

    async def count_tokens(self, *, betas: Sequence[str] = (), **fields: Any) -> Record:
        """How many `input_tokens` a request would have (protocol.md section 8.2). Raises APIError."""
        exchange = self._client._exchange("POST", "/v1/messages/count_tokens", fields, betas=betas)
        return await self._client._fetch(exchange)


class AsyncModels:
    """The Models API (protocol.md section 8.3)."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, *, betas: Sequence[str] = ()) -> AsyncIterator[Record]:
        """Every model, asking for page after page. Raises APIError."""
        last_id = None
        while True:
            exchange = self._client._exchange("GET", _page("/v1/models", last_id), betas=betas)
            page = await self._client._fetch(exchange)
            for model in page.get("data") or []:
                yield model
            last_id = page.get("last_id")
            if not page.get("has_more") or not last_id:
                return


class AsyncMessageStreamManager:
    """Sends the request when it is entered, each time anew, and closes the stream when it is left."""

    def __init__(
        self, client: AsyncClient, body: dict[str, Any], betas: Sequence[str], headers: tuple[tuple[str, str], ...]
    ) -> None:
        self._client = client
        self._ask: tuple[dict[str, Any], dict[str, Any]] = body, {"betas": betas, "headers": headers}
        self._stream: AsyncMessageStream | None = None

    async def __aenter__(self) -> AsyncMessageStream:
        body, options = self._ask
        exchange = self._client._exchange("POST", "/v1/messages", body, **options)
        self._stream = AsyncMessageStream(self._client, exchange, await self._client._open(exchange))
        return self._stream

    async def __aexit__(self, *exc_info: object) -> None:
        if self._stream:
            await self._stream.close()


class AsyncMessageStream(_StreamState):
    """The stream of one answer: iterate it for events, or `text_stream` for text; both draw on the same events.

    Each raw event is followed, after a delta, by the derived one (`text`, `input_json`, `thinking`, `signature`,
    `citation`). Iterating raises APIError where the answer fails, with the message so far in `partial`.
    """

    def __init__(self, client: AsyncClient, exchange: Exchange, response: httpx.Response) -> None:
        super().__init__(exchange, response)
        self._client = client
        self._events = _async_iterate(exchange, response)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def text_stream(self) -> AsyncIterator[str]:
        """The text of all text blocks as it comes, nothing between them."""
        return _async_texts(self)

    async def until_done(self) -> None:
        """Read to the end. Raises APIError."""
        async for _ in self:
            pass

    async def get_final_message(self) -> Message:
        """Read to the end; the whole message. Raises APIError, also after `close` in mid-stream."""
        await self.until_done()
        return self._final_message()

    async def get_final_text(self) -> str:
        """Read to the end; all text blocks joined. Raises APIError."""
        await self.until_done()
        self._final_message()
        return self.exchange.accumulator.text

    def reads(self) -> AsyncIterator[bytes]:
        """The body, a piece for each network read, for who passes it on; each must be given to `exchange.receive`.

        Ends when the message is complete; raises APIError if the body does so before.
        """
        return _async_read(self.exchange, self.response)

    async def retry(self, error: APIError) -> None:
        """Send the request again after `error`, if its kind allows and attempts are left; raises `error` if not.

        Only for who has passed nothing on yet: the stream begins anew.
        """
        wait = self._client._next_attempt(self.exchange, error)
        await self.close()
        await async_sleep(wait)
        self.response = await self._client._open(self.exchange)
        weakref.finalize(self, abandon, self.response).atexit = False
        self._events = _async_iterate(self.exchange, self.response)

    async def close(self) -> None:
        """Drop the connection; what was not read is lost."""
        await self.response.aclose()


async def _async_read(exchange: Exchange, response: httpx.Response) -> AsyncPieces:
    try:
        with mapped(in_body=True):
            async for data in response.aiter_raw():
                yield data
                if exchange.complete:
                    break
        exchange.end()
    except APIError as error:
        raise exchange.explained(error) from error.__cause__
    finally:
        await response.aclose()


async def _async_iterate(exchange: Exchange, response: httpx.Response) -> AsyncIterator[Event]:
    async with contextlib.aclosing(_async_read(exchange, response)) as pieces:
        async for data in pieces:
            for received in exchange.receive(data):
                for event in _records(received, exchange):
                    yield event


async def _async_texts(stream: AsyncMessageStream) -> AsyncIterator[str]:
    async for event in stream:
        if event["type"] == "text":
            yield event["text"]
