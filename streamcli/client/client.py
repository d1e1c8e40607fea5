"""The library: `Client` and `AsyncClient`, thin drivers over `exchange`, side by side.

Contract: the drivers open, read, sleep and close; what any of it means is decided below them. The asynchronous half of
this file is the synchronous one with `async` and `await`, and a test holds it to that. No exception but APIError
leaves. The surface is that of the official SDK, as far as it goes.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack
from urllib.parse import quote, urlencode, urlsplit

import httpx

from streamcli.errors import (
    APIError,
    APIStatusError,
    IncompleteStreamError,
    ProtocolError,
    UnexpectedResponseError,
    UsageError,
)
from streamcli.network.transport import (
    FOREIGN,
    TIMEOUT,
    WHOLE_TIMEOUT,
    AsyncPieces,
    Pieces,
    abandon,
    async_error_body,
    async_own_client,
    async_sleep,
    async_whole_body,
    error_body,
    our_error,
    outgoing,
    own_client,
    proxy_for,
    sleep,
    whole_body,
)
from streamcli.protocol.exchange import Exchange
from streamcli.protocol.jsontext import loads_exact
from streamcli.protocol.message import parsed
from streamcli.protocol.records import Event, Message, Record, events
from streamcli.protocol.request import (
    DEFAULT_BASE_URL,
    SAMPLING_API_VERSION,
    Endpoint,
    checked_base_url,
    credential,
    custom_headers,
    holds_credential,
    version_for,
)
from streamcli.protocol.retry import MAX_RETRIES

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from streamcli.network.transport import Proxy

    Timeout = float | httpx.Timeout | None

# How many models or batches one page may hold (streamcli(7), section "OTHER ENDPOINTS").
_PAGE = 1000
_BATCHES = "/v1/messages/batches"
# Answers which say that nothing was done, so that doing it again does it once.
_NOTHING_DONE = frozenset({408, 409, 429, 529})
_EXCERPT = 80


class Settings(TypedDict, total=False):
    """What both clients can be told; what is not given comes from the environment.

    `timeout` is in seconds, for connecting and for the silence between two reads; None is no limit, and what is not
    given is 5 and 90, or 600 where an answer comes whole. `total_timeout` bounds a whole call. `max_retries` further
    attempts are made while nothing was received, and `on_retry` is told the error and the seconds to wait before each.
    `allow_http` lets a key go out in clear. `endpoint` replaces key, address, headers and version. With `keep_text`
    false the message keeps its text only while that is short, for streams that are only passed on. `strict` makes the
    first deviation of a stream a ProtocolError (streamcli(7), section "DEVIATIONS").
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
    strict: bool


class _ClientState:
    """What both clients know: where requests go, with which credential, how long and how often."""

    def __init__(self, settings: Settings) -> None:
        self.endpoint = settings.get("endpoint") or _endpoint(settings)
        given = httpx.Timeout(settings["timeout"]) if "timeout" in settings else None
        self.timeout = given or TIMEOUT
        self.whole_timeout = given or WHOLE_TIMEOUT
        self.total_timeout = settings.get("total_timeout")
        self.max_retries = settings.get("max_retries", MAX_RETRIES)
        self.on_retry = settings.get("on_retry")
        self.keep_text = settings.get("keep_text", True)
        self.strict = settings.get("strict", False)
        self._allow_http = settings.get("allow_http", False)

    def _proxy(self) -> Proxy | None:
        return proxy_for(self.endpoint, allow_http=self._allow_http)

    def _exchange(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = None,
        kind: type[Exchange] = Exchange,
        **options: Any,
    ) -> Exchange:
        return kind(
            self.endpoint.request(method, path, body, **options),
            timeout=self.timeout if timeout is None else httpx.Timeout(timeout),
            max_retries=self.max_retries,
            total=self.total_timeout,
            keep_text=self.keep_text,
            strict=self.strict,
        )

    def _next_attempt(self, exchange: Exchange, error: APIError) -> float:
        wait = exchange.failed(error)
        if self.on_retry:
            self.on_retry(error, wait)
        return wait


def _endpoint(settings: Settings) -> Endpoint:
    key, token = settings.get("api_key"), settings.get("auth_token")
    scheme, source = ("bearer", "auth_token") if token and not key else ("", "api_key")
    secret = credential(os.environ, key=key or token, source=source, scheme=scheme)
    headers = (*custom_headers(os.environ), *(settings.get("default_headers") or {}).items())
    given, ambient = settings.get("base_url"), os.environ.get("ANTHROPIC_BASE_URL")
    base_url = checked_base_url(
        given or ambient or DEFAULT_BASE_URL,
        source="base_url" if given else "ANTHROPIC_BASE_URL",
        has_credential=secret is not None or holds_credential(headers),
        allow_http=settings.get("allow_http", False),
    )
    return Endpoint(base_url, secret, settings.get("api_version"), headers)


class _StreamState:
    """What both streams know: the answer's head, and the message so far."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self.exchange = exchange
        self._begin(response)

    def _begin(self, response: httpx.Response) -> None:
        self.response = response
        self._closed = False
        # Of the last read, what was not handed out yet.
        self._ready: Iterator[Event] = iter(())
        weakref.finalize(self, abandon, response).atexit = False

    def _check_open(self) -> None:
        if self._closed and not self.exchange.complete:
            raise self.exchange.explained(IncompleteStreamError("the stream was closed before message_stop"))

    @property
    def request_id(self) -> str | None:
        """The server's id for this call, from the `request-id` header."""
        return self.exchange.request_id

    @property
    def deviations(self) -> dict[str, int]:
        """How often the stream deviated from the documented one so far, by kind; empty where it did not."""
        return self.exchange.deviations

    @property
    def current_message_snapshot(self) -> Message:
        """The message as of the event handed out last; it does not change afterwards.

        Raises IncompleteStreamError before message_start.
        """
        snapshot = self.exchange.snapshot()
        if snapshot is None:
            raise self.exchange.explained(IncompleteStreamError("no message has started yet"))
        return snapshot


def _records(exchange: Exchange, data: bytes) -> Iterator[Event]:
    for raw, event, is_nothing in exchange.receive(data):
        if event is not None:
            yield from events(event, exchange.accumulator)
        elif raw and not is_nothing:
            yield Event(parsed(raw.event, raw.data))


def _fields(fields: Mapping[str, Any], extra_body: Mapping[str, Any] | None, *, stream: bool) -> dict[str, Any]:
    if fields.get("stream", stream) is not stream:
        raise UsageError("stream streams and create does not: leave out the field stream")
    body = {**fields, **(extra_body or {})}
    if stream:
        body["stream"] = True
    return body


def _page(path: str, limit: int, cursor: Mapping[str, str | None]) -> str:
    return f"{path}?{urlencode({'limit': limit} | {name: place for name, place in cursor.items() if place})}"


def _items(page: Mapping[str, Any]) -> list[Any]:
    items = page.get("data") or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnexpectedResponseError("the answer is no list of objects")
    return items


def _next_page(page: Mapping[str, Any], cursor: Mapping[str, str | None]) -> dict[str, str | None] | None:
    """Where the page after `page` begins, or None; one that begins where this one did would go on for ever."""
    way, place = ("before_id", "first_id") if cursor.get("before_id") else ("after_id", "last_id")
    end = page.get(place)
    return {way: end} if page.get("has_more") and end and end != cursor.get(way) else None


def _batch_path(message_batch_id: str) -> str:
    if not message_batch_id:
        raise UsageError("the id of a batch is empty")
    return f"{_BATCHES}/{quote(message_batch_id, safe='')}"


def samples(fields: Any) -> bool:
    """Whether a request of these fields needs the version that takes sampling parameters."""
    return isinstance(fields, dict) and version_for(fields) == SAMPLING_API_VERSION


def sampling_version(endpoint: Endpoint) -> dict[str, str]:
    """The header that a batch needs where one of its requests samples; none where the caller has chosen a version."""
    chosen = endpoint.api_version or any(name.lower() == "anthropic-version" for name, _ in endpoint.headers)
    return {} if chosen else {"anthropic-version": SAMPLING_API_VERSION}


def _batch_headers(endpoint: Endpoint, requests: Iterable[Any]) -> dict[str, str]:
    sampled = any(samples(request.get("params")) for request in requests if isinstance(request, dict))
    return sampling_version(endpoint) if sampled else {}


def _results_url(batch: Mapping[str, Any], endpoint: Endpoint) -> str:
    """Where the results of a batch are: where it says, if that is at the endpoint, else where the API has them.

    A gateway passes on what the API says of itself; the key goes nowhere but to the gateway.
    """
    url, base = batch.get("results_url"), urlsplit(endpoint.base_url)
    if not url and batch.get("archived_at"):
        raise UnexpectedResponseError(f"batch {batch.get('id')} has no results any more: it is archived")
    if not url and batch.get("processing_status") != "ended":
        raise UsageError(f"batch {batch.get('id')} has no results to read: it is {batch.get('processing_status')}")
    place = url if isinstance(url, str) else ""
    if place.startswith(f"{base.scheme}://{base.netloc}/"):
        return place
    if place.startswith("/") and not place.startswith("//"):
        return place.removeprefix(base.path) if place.startswith(f"{base.path}/") else place
    return f"{_batch_path(str(batch.get('id') or ''))}/results"


class _Creation(Exchange):
    """A call that makes something each time it is made, so that only a refusal may be followed by another attempt.

    After anything else, a lost connection above all, the server may have made it (streamcli(7), section "Message
    Batches").
    """

    def failed(self, error: APIError) -> float:
        if not (isinstance(error, APIStatusError) and error.status_code in _NOTHING_DONE):
            self._max_retries = 0
        return super().failed(error)


class _Download(Exchange):
    """A call that is answered by JSON Lines, of whatever content type."""

    def accepted(self, status: int, headers: Mapping[str, str]) -> bool:
        self.request_id = headers.get("request-id")
        return status == 200 and headers.get("content-encoding", "").strip().lower() in {"", "identity"}

    def error_response(
        self, status: int, headers: Mapping[str, str], body: bytes, *, wanted: str = "list of results"
    ) -> APIError:
        return super().error_response(status, headers, body, wanted=wanted)


class _ResultsState:
    """What both readers of results know: lines that came in part, records that were not handed out."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._exchange = exchange
        self._parts: list[bytes] = []
        self._ready: Iterator[bytes] = iter(())
        self._over = False
        weakref.finalize(self, abandon, response).atexit = False

    def _receive(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        self._parts.append(first)
        if others:
            lines = [b"".join(self._parts), *others]
            self._parts = [lines.pop()]
            self._ready = filter(bytes.strip, lines)

    def _end(self) -> None:
        self._over = True
        self._receive(b"\n")

    def _record(self, line: bytes) -> Record:
        try:
            value = loads_exact(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            text = f"a line of the results is no JSON object but {line[:_EXCERPT]!r}"
            raise self._exchange.explained(ProtocolError(text))
        return Record(value)


# The synchronous half.


class Client(_ClientState):
    """A client of a Messages endpoint.

    Takes the keywords of `Settings`, and `http_client`: an httpx.Client to send through instead of one of our own,
    which `close` leaves open. Raises UsageError for a key or an address that cannot be used.
    """

    def __init__(self, *, http_client: httpx.Client | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__(settings)
        self._owned = http_client is None
        self._http = http_client or own_client(proxy=self._proxy())

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
        try:
            request = outgoing(self._http, exchange)
            return self._http.send(request, stream=True, follow_redirects=False)
        except FOREIGN as fault:
            raise our_error(fault) from fault

    def _open(self, exchange: Exchange) -> httpx.Response:
        while True:
            try:
                response = self._send(exchange)
                if exchange.accepted(response.status_code, response.headers):
                    return response
                body = error_body(response)
                raise exchange.error_response(response.status_code, response.headers, body)
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            sleep(wait)

    def _fetch(self, exchange: Exchange) -> Record:
        while True:
            try:
                response = self._send(exchange)
                exchange.request_id = response.headers.get("request-id")
                body = whole_body(response)
                return Record(exchange.json_object(response.status_code, response.headers, body))
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            sleep(wait)


class Messages:
    """The Messages API: fields go into the request's body as they are, known or not."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def batches(self) -> Batches:
        """The Message Batches API."""
        return Batches(self._client)

    def stream(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
        **fields: Any,
    ) -> MessageStreamManager:
        """A stream of one answer, as a context manager that sends when it is entered.

        `betas` go out as `anthropic-beta`; `timeout`, in seconds, replaces the client's for this call.
        """
        body = _fields(fields, extra_body, stream=True)
        headers = (extra_headers or {}).items()
        return MessageStreamManager(self._client, body, betas=betas, headers=tuple(headers), timeout=timeout)

    def create(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
        **fields: Any,
    ) -> Message:
        """One answer, whole; options as for `stream`. Raises APIError."""
        body = _fields(fields, extra_body, stream=False)
        options: dict[str, Any] = {"betas": betas, "headers": (extra_headers or {}).items()}
        patience = self._client.whole_timeout if timeout is None else timeout
        exchange = self._client._exchange("POST", "/v1/messages", body, timeout=patience, **options)
        return Message(self._client._fetch(exchange))

    def count_tokens(self, *, betas: Sequence[str] = (), timeout: Timeout = None, **fields: Any) -> Record:
        """How many `input_tokens` a request would have (streamcli(7), section "Token counts"). Raises APIError."""
        exchange = self._client._exchange("POST", "/v1/messages/count_tokens", fields, betas=betas, timeout=timeout)
        return self._client._fetch(exchange)


class Batches:
    """The Message Batches API (streamcli(7), section "Message Batches")."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        *,
        requests: Iterable[Any],
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        timeout: Timeout = None,
    ) -> Record:
        """Submit `requests`, each `{"custom_id", "params"}`; the batch, `processing_status` "in_progress". APIError.

        Another attempt is made only where the server refused this one. After a lost connection, a timeout or a fault
        of the server nobody knows whether the batch was made: `list` tells.
        """
        body = {"requests": list(requests)}
        headers = _batch_headers(self._client.endpoint, body["requests"]) | dict(extra_headers or {})
        options: dict[str, Any] = {"betas": betas, "headers": headers.items()}
        patience = self._client.whole_timeout if timeout is None else timeout
        exchange = self._client._exchange("POST", _BATCHES, body, timeout=patience, kind=_Creation, **options)
        return self._client._fetch(exchange)

    def retrieve(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> Record:
        """The batch as it is now; its counts say nothing before it has ended. Raises APIError."""
        exchange = self._client._exchange("GET", _batch_path(message_batch_id), betas=betas)
        return self._client._fetch(exchange)

    def list(
        self,
        *,
        limit: int = _PAGE,
        before_id: str | None = None,
        after_id: str | None = None,
        betas: Sequence[str] = (),
    ) -> Iterator[Record]:
        """Every batch, the newest first, asking for page after page of `limit`. Raises APIError."""
        cursor: dict[str, str | None] | None = {"before_id": before_id, "after_id": after_id}
        while cursor is not None:
            exchange = self._client._exchange("GET", _page(_BATCHES, limit, cursor), betas=betas)
            page = self._client._fetch(exchange)
            for batch in _items(page):
                yield batch
            cursor = _next_page(page, cursor)

    def cancel(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> Record:
        """Ask that what was not begun is left out; the batch, which ends somewhat later. Raises APIError."""
        exchange = self._client._exchange("POST", f"{_batch_path(message_batch_id)}/cancel", betas=betas)
        return self._client._fetch(exchange)

    def results(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> BatchResults:
        """The results of a batch that has ended, in no order, read as they come. Raises APIError.

        UsageError where there are none yet. Where their URL is not at our host, they are asked for where the API has
        them.
        """
        url = _results_url(self.retrieve(message_batch_id, betas=betas), self._client.endpoint)
        headers = {"accept": "application/binary"}.items()
        exchange = self._client._exchange("GET", url, betas=betas, headers=headers, kind=_Download)
        return BatchResults(exchange, self._client._open(exchange))


class BatchResults(_ResultsState):
    """The results of one batch, each `{"custom_id", "result"}` as sent; raises APIError where they break off.

    A line that is not a JSON object is a ProtocolError; the next call goes on behind it.
    """

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        super().__init__(exchange, response)
        self._pieces = Pieces(response)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        try:
            line = self._line()
        except APIError as error:
            self.close()
            raise self._exchange.explained(error) from error.__cause__
        if line is not None:
            return self._record(line)
        self.close()
        raise StopIteration

    def _line(self) -> bytes | None:
        while True:
            for line in self._ready:
                return line
            if self._over:
                return None
            self._exchange.check_time()
            for data in self._pieces:
                self._receive(data)
                break
            else:
                self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; what was not read is lost."""
        self._over, self._ready = True, iter(())
        self._pieces.close()


class Models:
    """The Models API (streamcli(7), section "Models")."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, betas: Sequence[str] = ()) -> Iterator[Record]:
        """Every model, asking for page after page. Raises APIError."""
        cursor: dict[str, str | None] | None = {}
        while cursor is not None:
            exchange = self._client._exchange("GET", _page("/v1/models", _PAGE, cursor), betas=betas)
            page = self._client._fetch(exchange)
            for model in _items(page):
                yield model
            cursor = _next_page(page, cursor)


class MessageStreamManager:
    """Sends the request when it is entered, each time anew, and closes the stream when it is left."""

    def __init__(self, client: Client, body: dict[str, Any], **options: Any) -> None:
        self._client = client
        self._body = body
        self._options = options
        self._stream: MessageStream | None = None

    def __enter__(self) -> MessageStream:
        exchange = self._client._exchange("POST", "/v1/messages", self._body, **self._options)
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
        self._reads = _Reads(exchange, response)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        self._check_open()
        try:
            while True:
                for event in self._ready:
                    return event
                self._ready = _records(self.exchange, self._reads.__next__())
        except APIError:
            self._reads.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def text_stream(self) -> Iterator[str]:
        """The text of all text blocks as it comes, nothing between them."""
        return _Texts(self)

    def until_done(self) -> None:
        """Read to the end. Raises APIError."""
        self._check_open()
        try:
            for _ in self._ready:
                pass
            for data in self._reads:
                for _ in self.exchange.receive(data):
                    pass
        except APIError:
            self._reads.close()
            raise
        self.exchange.end()

    def get_final_message(self) -> Message:
        """Read to the end; the whole message. Raises APIError, also after `close` in mid-stream."""
        self.until_done()
        return self.current_message_snapshot

    def get_final_text(self) -> str:
        """Read to the end; all text blocks joined. Raises APIError."""
        self.until_done()
        return self.exchange.accumulator.text

    def reads(self) -> Iterator[bytes]:
        """The body, a piece for each network read, for who passes it on; each must be given to `exchange.receive`.

        Ends when the message is complete; raises APIError if the body does so before.
        """
        return self._reads

    def retry(self, error: APIError) -> None:
        """Send the request again after `error`, if its kind allows and attempts are left; raises `error` if not.

        Only for who has passed nothing on yet: the stream begins anew.
        """
        wait = self._client._next_attempt(self.exchange, error)
        self.close()
        sleep(wait)
        self._begin(self._client._open(self.exchange))
        self._reads = _Reads(self.exchange, self.response)

    def close(self) -> None:
        """Drop the connection; what was not read is lost."""
        self._closed = True
        self._reads.close()


class _Texts:
    """The text of a stream as it comes. No generator: one that is left early would be closed at some later time."""

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for event in self._stream:
            if event["type"] == "text":
                text: str = event["text"]
                return text
        raise StopIteration


class _Reads:
    """The body until the message is complete, a piece for each network read; raises if it ends before."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._exchange = exchange
        self._pieces = Pieces(response)
        self._over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if not (self._over or self._exchange.complete):
                self._exchange.check_time()
                for data in self._pieces:
                    return data
                self._exchange.end()
        except APIError as error:
            self.close()
            raise self._exchange.explained(error) from error.__cause__
        self.close()
        raise StopIteration

    def close(self) -> None:
        self._over = True
        self._pieces.close()


# The asynchronous half: the same, with async and await.


class AsyncClient(_ClientState):
    """A client of a Messages endpoint.

    Takes the keywords of `Settings`, and `http_client`: an httpx.AsyncClient to send through instead of one of our own,
    which `close` leaves open. Raises UsageError for a key or an address that cannot be used.
    """

    def __init__(self, *, http_client: httpx.AsyncClient | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__(settings)
        self._owned = http_client is None
        self._http = http_client or async_own_client(proxy=self._proxy())

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
        try:
            request = outgoing(self._http, exchange)
            return await self._http.send(request, stream=True, follow_redirects=False)
        except FOREIGN as fault:
            raise our_error(fault) from fault

    async def _open(self, exchange: Exchange) -> httpx.Response:
        while True:
            try:
                response = await self._send(exchange)
                if exchange.accepted(response.status_code, response.headers):
                    return response
                body = await async_error_body(response)
                raise exchange.error_response(response.status_code, response.headers, body)
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            await async_sleep(wait)

    async def _fetch(self, exchange: Exchange) -> Record:
        while True:
            try:
                response = await self._send(exchange)
                exchange.request_id = response.headers.get("request-id")
                body = await async_whole_body(response)
                return Record(exchange.json_object(response.status_code, response.headers, body))
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            await async_sleep(wait)


class AsyncMessages:
    """The Messages API: fields go into the request's body as they are, known or not."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @property
    def batches(self) -> AsyncBatches:
        """The Message Batches API."""
        return AsyncBatches(self._client)

    def stream(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
        **fields: Any,
    ) -> AsyncMessageStreamManager:
        """A stream of one answer, as a context manager that sends when it is entered.

        `betas` go out as `anthropic-beta`; `timeout`, in seconds, replaces the client's for this call.
        """
        body = _fields(fields, extra_body, stream=True)
        headers = (extra_headers or {}).items()
        return AsyncMessageStreamManager(self._client, body, betas=betas, headers=tuple(headers), timeout=timeout)

    async def create(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
        **fields: Any,
    ) -> Message:
        """One answer, whole; options as for `stream`. Raises APIError."""
        body = _fields(fields, extra_body, stream=False)
        options: dict[str, Any] = {"betas": betas, "headers": (extra_headers or {}).items()}
        patience = self._client.whole_timeout if timeout is None else timeout
        exchange = self._client._exchange("POST", "/v1/messages", body, timeout=patience, **options)
        return Message(await self._client._fetch(exchange))

    async def count_tokens(self, *, betas: Sequence[str] = (), timeout: Timeout = None, **fields: Any) -> Record:
        """How many `input_tokens` a request would have (streamcli(7), section "Token counts"). Raises APIError."""
        exchange = self._client._exchange("POST", "/v1/messages/count_tokens", fields, betas=betas, timeout=timeout)
        return await self._client._fetch(exchange)


class AsyncBatches:
    """The Message Batches API (streamcli(7), section "Message Batches")."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        *,
        requests: Iterable[Any],
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        timeout: Timeout = None,
    ) -> Record:
        """Submit `requests`, each `{"custom_id", "params"}`; the batch, `processing_status` "in_progress". APIError.

        Another attempt is made only where the server refused this one. After a lost connection, a timeout or a fault
        of the server nobody knows whether the batch was made: `list` tells.
        """
        body = {"requests": list(requests)}
        headers = _batch_headers(self._client.endpoint, body["requests"]) | dict(extra_headers or {})
        options: dict[str, Any] = {"betas": betas, "headers": headers.items()}
        patience = self._client.whole_timeout if timeout is None else timeout
        exchange = self._client._exchange("POST", _BATCHES, body, timeout=patience, kind=_Creation, **options)
        return await self._client._fetch(exchange)

    async def retrieve(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> Record:
        """The batch as it is now; its counts say nothing before it has ended. Raises APIError."""
        exchange = self._client._exchange("GET", _batch_path(message_batch_id), betas=betas)
        return await self._client._fetch(exchange)

    async def list(
        self,
        *,
        limit: int = _PAGE,
        before_id: str | None = None,
        after_id: str | None = None,
        betas: Sequence[str] = (),
    ) -> AsyncIterator[Record]:
        """Every batch, the newest first, asking for page after page of `limit`. Raises APIError."""
        cursor: dict[str, str | None] | None = {"before_id": before_id, "after_id": after_id}
        while cursor is not None:
            exchange = self._client._exchange("GET", _page(_BATCHES, limit, cursor), betas=betas)
            page = await self._client._fetch(exchange)
            for batch in _items(page):
                yield batch
            cursor = _next_page(page, cursor)

    async def cancel(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> Record:
        """Ask that what was not begun is left out; the batch, which ends somewhat later. Raises APIError."""
        exchange = self._client._exchange("POST", f"{_batch_path(message_batch_id)}/cancel", betas=betas)
        return await self._client._fetch(exchange)

    async def results(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> AsyncBatchResults:
        """The results of a batch that has ended, in no order, read as they come. Raises APIError.

        UsageError where there are none yet. Where their URL is not at our host, they are asked for where the API has
        them.
        """
        url = _results_url(await self.retrieve(message_batch_id, betas=betas), self._client.endpoint)
        headers = {"accept": "application/binary"}.items()
        exchange = self._client._exchange("GET", url, betas=betas, headers=headers, kind=_Download)
        return AsyncBatchResults(exchange, await self._client._open(exchange))


class AsyncBatchResults(_ResultsState):
    """The results of one batch, each `{"custom_id", "result"}` as sent; raises APIError where they break off.

    A line that is not a JSON object is a ProtocolError; the next call goes on behind it.
    """

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        super().__init__(exchange, response)
        self._pieces = AsyncPieces(response)

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        try:
            line = await self._line()
        except APIError as error:
            await self.close()
            raise self._exchange.explained(error) from error.__cause__
        if line is not None:
            return self._record(line)
        await self.close()
        raise StopAsyncIteration

    async def _line(self) -> bytes | None:
        while True:
            for line in self._ready:
                return line
            if self._over:
                return None
            self._exchange.check_time()
            async for data in self._pieces:
                self._receive(data)
                break
            else:
                self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connection; what was not read is lost."""
        self._over, self._ready = True, iter(())
        await self._pieces.aclose()


class AsyncModels:
    """The Models API (streamcli(7), section "Models")."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, *, betas: Sequence[str] = ()) -> AsyncIterator[Record]:
        """Every model, asking for page after page. Raises APIError."""
        cursor: dict[str, str | None] | None = {}
        while cursor is not None:
            exchange = self._client._exchange("GET", _page("/v1/models", _PAGE, cursor), betas=betas)
            page = await self._client._fetch(exchange)
            for model in _items(page):
                yield model
            cursor = _next_page(page, cursor)


class AsyncMessageStreamManager:
    """Sends the request when it is entered, each time anew, and closes the stream when it is left."""

    def __init__(self, client: AsyncClient, body: dict[str, Any], **options: Any) -> None:
        self._client = client
        self._body = body
        self._options = options
        self._stream: AsyncMessageStream | None = None

    async def __aenter__(self) -> AsyncMessageStream:
        exchange = self._client._exchange("POST", "/v1/messages", self._body, **self._options)
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
        self._reads = _AsyncReads(exchange, response)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        self._check_open()
        try:
            while True:
                for event in self._ready:
                    return event
                self._ready = _records(self.exchange, await self._reads.__anext__())
        except APIError:
            await self._reads.aclose()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def text_stream(self) -> AsyncIterator[str]:
        """The text of all text blocks as it comes, nothing between them."""
        return _AsyncTexts(self)

    async def until_done(self) -> None:
        """Read to the end. Raises APIError."""
        self._check_open()
        try:
            for _ in self._ready:
                pass
            async for data in self._reads:
                for _ in self.exchange.receive(data):
                    pass
        except APIError:
            await self._reads.aclose()
            raise
        self.exchange.end()

    async def get_final_message(self) -> Message:
        """Read to the end; the whole message. Raises APIError, also after `close` in mid-stream."""
        await self.until_done()
        return self.current_message_snapshot

    async def get_final_text(self) -> str:
        """Read to the end; all text blocks joined. Raises APIError."""
        await self.until_done()
        return self.exchange.accumulator.text

    def reads(self) -> AsyncIterator[bytes]:
        """The body, a piece for each network read, for who passes it on; each must be given to `exchange.receive`.

        Ends when the message is complete; raises APIError if the body does so before.
        """
        return self._reads

    async def retry(self, error: APIError) -> None:
        """Send the request again after `error`, if its kind allows and attempts are left; raises `error` if not.

        Only for who has passed nothing on yet: the stream begins anew.
        """
        wait = self._client._next_attempt(self.exchange, error)
        await self.close()
        await async_sleep(wait)
        self._begin(await self._client._open(self.exchange))
        self._reads = _AsyncReads(self.exchange, self.response)

    async def close(self) -> None:
        """Drop the connection; what was not read is lost."""
        self._closed = True
        await self._reads.aclose()


class _AsyncTexts:
    """The text of a stream as it comes. No generator: one that is left early would be closed at some later time."""

    def __init__(self, stream: AsyncMessageStream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        async for event in self._stream:
            if event["type"] == "text":
                text: str = event["text"]
                return text
        raise StopAsyncIteration


class _AsyncReads:
    """The body until the message is complete, a piece for each network read; raises if it ends before."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._exchange = exchange
        self._pieces = AsyncPieces(response)
        self._over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            if not (self._over or self._exchange.complete):
                self._exchange.check_time()
                async for data in self._pieces:
                    return data
                self._exchange.end()
        except APIError as error:
            await self.aclose()
            raise self._exchange.explained(error) from error.__cause__
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._over = True
        await self._pieces.aclose()
