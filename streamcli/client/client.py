# Made from async_client.py by tests/twins.py: edit that one and run `make twins`.
"""The synchronous half of the library: `Client` and what it hands out, thin drivers over an exchange.

Contract: the drivers open, read, sleep and close; what any of it means is decided below them. No exception but APIError
leaves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from time import sleep
from typing import TYPE_CHECKING, Any, Self, Unpack

from streamcli.errors import APIError, IncompleteStreamError
from streamcli.network.body import Pieces, error_body, whole_body
from streamcli.network.library_errors import HTTPX_ERRORS, from_httpx
from streamcli.network.request import for_httpx
from streamcli.network.response import drop
from streamcli.network.transport import own_client
from streamcli.protocol.exchange import Exchange, request_id_in
from streamcli.protocol.records import Event, Message, Record

from .calls import (
    BATCHES,
    MESSAGES,
    MODELS,
    PAGE_SIZE,
    Creation,
    Download,
    batch_headers,
    batch_path,
    next_page,
    page_items,
    page_path,
    request_body,
    results_url,
)
from .settings import ClientState, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import httpx

    from .settings import Timeout


class Client(ClientState):
    """A client of a Messages endpoint.

    Takes the keywords that `help(streamcli.Settings)` explains, `api_key`, `base_url` and `timeout` above all, and
    `http_client`: an httpx.Client to send through instead of one of our own, which `close` leaves open. Raises
    UsageError for a key or an address that cannot be used.
    """

    def __init__(self, *, http_client: httpx.Client | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__(settings)
        self._owned = http_client is None
        self._http = http_client or own_client(proxy=self._proxy())

    @property
    def messages(self) -> Messages:
        """The Messages API: `stream`, `create`, `count_tokens` and `batches`."""
        return Messages(self)

    @property
    def models(self) -> Models:
        """The Models API: `list`."""
        return Models(self)

    @property
    def beta(self) -> Self:
        """The client itself, because every call takes `betas`."""
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
            request = for_httpx(self._http, exchange)
            return self._http.send(request, stream=True, follow_redirects=False)
        except HTTPX_ERRORS as fault:
            raise from_httpx(fault) from fault

    def _open(self, exchange: Exchange) -> Pieces:
        while True:
            try:
                response = self._send(exchange)
                pieces = Pieces(response)
                if _is_accepted(exchange, pieces):
                    return pieces
                body = error_body(pieces, exchange.body.beginning)
                raise exchange.error_response(response.status_code, response.headers, body)
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            sleep(wait)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        kind: type[Exchange] = Exchange,
        **options: Any,
    ) -> Record:
        exchange = self._exchange(kind, method, path, body, **options)
        while True:
            try:
                response = self._send(exchange)
                exchange.request_id = request_id_in(response.headers)
                came = whole_body(response)
                return Record(exchange.json_object(response.status_code, response.headers, came))
            except APIError as error:
                wait = self._next_attempt(exchange, error)
            sleep(wait)


def _is_accepted(exchange: Exchange, pieces: Pieces) -> bool:
    """Whether a body is to be received, by its head, or else by what it begins with."""
    accepted = exchange.accepted(pieces.response.status_code, pieces.response.headers)
    try:
        while accepted is None:
            accepted = exchange.body.look(pieces.read())
    except APIError:
        pieces.close()
        raise
    return accepted


class _Calls:
    def __init__(self, client: Client) -> None:
        self._client = client


class Messages(_Calls):
    """The Messages API: fields go into the request's body as they are, known or not."""

    @property
    def batches(self) -> Batches:
        """The Message Batches API: `create`, `retrieve`, `list`, `cancel` and `results`."""
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

        `fields` are the API's: `model`, `max_tokens`, `messages` and any other; those of `extra_body` replace them.
        `betas` go out as `anthropic-beta`; `timeout`, in seconds, replaces the client's for this call.
        """
        body = request_body(fields, extra_body, stream=True)
        headers = tuple((extra_headers or {}).items())
        return MessageStreamManager(self._client, body, betas=betas, headers=headers, timeout=timeout)

    def create(
        self,
        *,
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
        **fields: Any,
    ) -> Message:
        """One message, when it is complete; the arguments are those of `stream`. Raises APIError."""
        body = request_body(fields, extra_body, stream=False)
        options: dict[str, Any] = {"betas": betas, "headers": (extra_headers or {}).items(), "timeout": timeout}
        return Message(self._client._call("POST", MESSAGES, body, comes_whole=True, **options))

    def count_tokens(
        self,
        *,
        betas: Sequence[str] = (),
        extra_body: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
        **fields: Any,
    ) -> Record:
        """How many `input_tokens` a request would have. Raises APIError."""
        body = {**fields, **(extra_body or {})}
        return self._client._call("POST", f"{MESSAGES}/count_tokens", body, betas=betas, timeout=timeout)


class Batches(_Calls):
    """The Message Batches API."""

    def create(
        self,
        *,
        requests: Iterable[Any],
        betas: Sequence[str] = (),
        extra_headers: Mapping[str, str] | None = None,
        timeout: Timeout = None,
    ) -> Record:
        """Submit `requests`, each `{"custom_id", "params"}`, and return the batch. Raises APIError.

        Another attempt is made only where the server says that this one did nothing. After a lost connection, a timeout
        or a fault of the server nobody knows whether the batch was made: `list` tells.
        """
        body = {"requests": list(requests)}
        headers = batch_headers(self._client.endpoint, body["requests"]) | dict(extra_headers or {})
        options: dict[str, Any] = {"betas": betas, "headers": headers.items(), "timeout": timeout}
        return self._client._call("POST", BATCHES, body, kind=Creation, comes_whole=True, **options)

    def retrieve(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> Record:
        """The batch as it is now; its counts say nothing before it has ended. Raises APIError."""
        return self._client._call("GET", batch_path(message_batch_id), betas=betas)

    def list(
        self,
        *,
        limit: int = PAGE_SIZE,
        before_id: str | None = None,
        after_id: str | None = None,
        betas: Sequence[str] = (),
    ) -> Iterator[Record]:
        """Every batch, the newest first, asking for page after page of `limit`. Raises APIError."""
        return _listed(self._client, BATCHES, limit, {"before_id": before_id, "after_id": after_id}, betas)

    def cancel(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> Record:
        """Cancel what has not begun, and return the batch, which ends somewhat later. Raises APIError."""
        return self._client._call("POST", f"{batch_path(message_batch_id)}/cancel", betas=betas)

    def results(self, message_batch_id: str, *, betas: Sequence[str] = ()) -> BatchResults:
        """The results of a batch that has ended, in any order, read as they come. Raises APIError.

        UsageError if there are none yet. If their URL is on another host, they are fetched from the API's usual path.
        """
        url = results_url(self.retrieve(message_batch_id, betas=betas), self._client.endpoint)
        headers = {"accept": "application/binary"}.items()
        download = self._client._exchange(Download, "GET", url, betas=betas, headers=headers)
        return BatchResults(download, self._client._open(download))


class _Reads(Iterator[bytes]):
    """The body until the message is complete, a piece for each network read; raises if it ends before.

    One that nobody holds any more drops its connection.
    """

    def __init__(self, exchange: Exchange, pieces: Pieces) -> None:
        self._exchange = exchange
        self._pieces = pieces
        self._looked_at = exchange.body.beginning
        # By whoever reads it, who must not take what came for the whole.
        self.closed = False
        self._over = False
        weakref.finalize(self, drop, pieces.response).atexit = False

    def __next__(self) -> bytes:
        try:
            while not (self._over or self._exchange.complete):
                if self._looked_at:
                    data, self._looked_at = self._looked_at, b""
                    return data
                self._exchange.check_time()
                came = self._pieces.read()
                data = self._exchange.body.decoded(came)
                if data:
                    return data
                if came is None and not self.closed:
                    self._exchange.end()
        except APIError as error:
            self.close()
            if self.closed:  # while it was waited for: what was closed here did not break off there
                raise self._exchange.closed_early() from None
            raise self._exchange.explained(error) from error.__cause__
        except BaseException:  # cancelled, or a signal: a read that was broken off would look like the end
            self.closed = self._over = True
            raise
        self.close()
        if self.closed and not self._exchange.complete:
            raise self._exchange.closed_early()
        raise StopIteration

    def close(self) -> None:
        self._over = True
        self._pieces.close()


class _Drawn:
    """What is drawn from the reads of one response, piece by piece, for as long as a context is open."""

    def _draw_from(self, reads: _Reads) -> None:
        self._reads = reads
        # Of the last read, what was not handed out yet.
        self._ready: Iterator[Any] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; what was not read is lost."""
        self._ready = iter(())
        self._reads.closed = True
        self._reads.close()


class BatchResults(_Drawn, Iterator[Record]):
    """The results of one batch, each `{"custom_id", "result"}` as sent; raises APIError where they break off.

    A line that is not a JSON object is a ProtocolError; the next call goes on behind it.
    """

    def __init__(self, download: Download, pieces: Pieces) -> None:
        self._download = download
        self._draw_from(_Reads(download, pieces))

    def __next__(self) -> Record:
        try:
            line = next(self._ready, None)
            while line is None:
                data = next(self._reads, b"")
                self._ready = self._download.lines(data)
                line = next(self._ready, None)
                if line is None and not data:
                    raise StopIteration
        except APIError:
            self._reads.close()
            raise
        return Record(self._download.result(line))


class Models(_Calls):
    """The Models API."""

    def list(self, *, betas: Sequence[str] = ()) -> Iterator[Record]:
        """Every model, page after page. Raises APIError."""
        return _listed(self._client, MODELS, PAGE_SIZE, {}, betas)


def _listed(
    client: Client, path: str, limit: int, cursor: dict[str, str | None] | None, betas: Sequence[str]
) -> Iterator[Record]:
    known: set[str] = set()
    while cursor is not None:
        page = client._call("GET", page_path(path, limit, cursor), betas=betas)
        for item in page_items(page):
            yield item
        cursor = next_page(page, cursor, known)


class MessageStreamManager:
    """Sends the request when it is entered, each time anew, and closes the stream when it is left."""

    def __init__(self, client: Client, body: dict[str, Any], **options: Any) -> None:
        self._client = client
        self._body = body
        self._options = options
        self._stream: MessageStream | None = None

    def __enter__(self) -> MessageStream:
        exchange = self._client._exchange(Exchange, "POST", MESSAGES, self._body, **self._options)
        self._stream = MessageStream(self._client, exchange, self._client._open(exchange))
        return self._stream

    def __exit__(self, *exc_info: object) -> None:
        if self._stream:
            self._stream.close()


class MessageStream(_Drawn, Iterator[Event]):
    """The stream of one answer: iterate it for events, or `text_stream` for text; both draw on the same events.

    Each raw event is followed, after a delta, by the derived one (`text`, `input_json`, `thinking`, `signature`,
    `citation`). Iterating raises APIError where the stream fails, with the message so far in `partial`.
    """

    def __init__(self, client: Client, exchange: Exchange, pieces: Pieces) -> None:
        self._client = client
        self.exchange = exchange
        self.response = pieces.response
        self._draw_from(_Reads(exchange, pieces))

    def __next__(self) -> Event:
        try:
            event: Event | None = next(self._ready, None)
            while event is None:
                self._ready = self.exchange.records(next(self._reads))
                event = next(self._ready, None)
        except APIError:
            self._reads.close()
            raise
        return event

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
        """The message as of the event handed out last, a copy. Raises IncompleteStreamError before message_start."""
        snapshot = self.exchange.snapshot()
        if snapshot is None:
            raise self.exchange.explained(IncompleteStreamError("no message has started yet"))
        return snapshot

    @property
    def text_stream(self) -> Iterator[str]:
        """The text of all text blocks as it comes, with nothing in between."""
        return _Texts(self)

    def until_done(self) -> None:
        """Read to the end. Raises APIError."""
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
        """Read to the end and return the whole message. Raises APIError, also after `close` in mid-stream."""
        self.until_done()
        return self.current_message_snapshot

    def get_final_text(self) -> str:
        """Read to the end and return the text of all text blocks, joined. Raises APIError."""
        self.until_done()
        return self.exchange.accumulator.text

    def reads(self) -> Iterator[bytes]:
        """The body, a piece for each network read, to be passed on; each must be given to `exchange.receive`.

        Ends when the message is complete; raises APIError if the body does so before.
        """
        return self._reads

    def retry(self, error: APIError) -> None:
        """Send the request again after `error`, if its kind allows and attempts are left; raises `error` if not.

        Only while nothing was passed on: the stream begins anew.
        """
        wait = self._client._next_attempt(self.exchange, error)
        self.close()
        sleep(wait)
        pieces = self._client._open(self.exchange)
        self.response = pieces.response
        self._draw_from(_Reads(self.exchange, pieces))


class _Texts(Iterator[str]):
    """The text of a stream as it comes. No generator: one that is left early would be closed at some later time."""

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream

    def __next__(self) -> str:
        for event in self._stream:
            if event["type"] == "text":
                text: str = event["text"]
                return text
        raise StopIteration
