"""What each call of the API is: its path and body, the headers it needs, and what its response means.

Contract: no I/O. What the caller got wrong is a UsageError, what the server got wrong an UnexpectedResponseError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from streamcli.errors import APIError, APIStatusError, ProtocolError, UnexpectedResponseError, UsageError
from streamcli.protocol import coding
from streamcli.protocol.body import MAX_BODY
from streamcli.protocol.exchange import Exchange, request_id_in
from streamcli.protocol.jsontext import loads_exact, object_in
from streamcli.protocol.request import SAMPLING_API_VERSION, Endpoint, version_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MESSAGES = "/v1/messages"
MODELS = "/v1/models"
BATCHES = "/v1/messages/batches"
# How many models or batches one page may hold.
PAGE_SIZE = 1000
# Fields that the request to count tokens must not have.
UNCOUNTED = frozenset(
    {"max_tokens", "stream", "stop_sequences", "temperature", "top_p", "top_k", "metadata", "service_tier"}
    | {"container", "inference_geo", "diagnostics", "fallbacks", "fallback_credit_token", "thread"}
)
# How much of a line is shown that cannot be read.
_EXCERPT = 80
# Statuses which say that nothing was done, so that doing it again does it once.
_NOTHING_DONE = frozenset({408, 409, 429, 529})


def request_body(fields: Mapping[str, Any], extra_body: Mapping[str, Any] | None, *, stream: bool) -> dict[str, Any]:
    """The body of a request for a message. Raises UsageError for a field `stream` that contradicts the call."""
    if fields.get("stream", stream) is not stream:
        raise UsageError("leave out the field stream: this method sets it itself")
    body = {**fields, **(extra_body or {})}
    if stream:
        body["stream"] = True
    return body


def to_count(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request goes into the one that counts its tokens."""
    return {name: value for name, value in fields.items() if name not in UNCOUNTED}


def counted(count: Mapping[str, Any]) -> int:
    """The tokens that were counted. Raises UnexpectedResponseError where the response does not say it."""
    tokens = count.get("input_tokens")
    if not isinstance(tokens, int):
        raise UnexpectedResponseError("the response does not say how many input_tokens there are")
    return tokens


def page_path(path: str, limit: int, cursor: Mapping[str, str | None]) -> str:
    """The path of a page of at most `limit` items, from where `cursor` says."""
    return f"{path}?{urlencode({'limit': limit} | {name: place for name, place in cursor.items() if place})}"


def page_items(page: Mapping[str, Any]) -> list[Any]:
    """What a page lists. Raises UnexpectedResponseError where that is not a list of objects."""
    items = page.get("data") or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnexpectedResponseError("the response is not a list of objects")
    return items


def next_page(
    page: Mapping[str, Any], cursor: Mapping[str, str | None], known: set[str]
) -> dict[str, str | None] | None:
    """Where the page after `page` begins, or None. A list that comes back to a place among `known` would never end.

    The place that is asked for, and the one that comes next, are put among `known`. UnexpectedResponseError for a place
    that is not a string.
    """
    way, place = ("before_id", "first_id") if cursor.get("before_id") else ("after_id", "last_id")
    known.add(cursor.get(way) or "")
    end = page.get(place) if page.get("has_more") else None
    if not isinstance(end, str | None):
        raise UnexpectedResponseError(f"the response is not a page: its {place} is not a string")
    return {way: end} if end and end not in known else None


def batch_path(message_batch_id: str) -> str:
    """The path of one batch. Raises UsageError for an empty id."""
    if not message_batch_id:
        raise UsageError("the id of a batch is empty")
    return f"{BATCHES}/{quote(message_batch_id, safe='')}"


def samples(fields: Any) -> bool:
    """Whether a request of these fields needs the version that takes sampling parameters."""
    return isinstance(fields, dict) and version_for(fields) == SAMPLING_API_VERSION


def sampling_version(endpoint: Endpoint) -> dict[str, str]:
    """The header that a batch needs where one of its requests samples; none where the caller has chosen a version."""
    chosen = endpoint.api_version or any(name.lower() == "anthropic-version" for name, _ in endpoint.headers)
    return {} if chosen else {"anthropic-version": SAMPLING_API_VERSION}


def batch_headers(endpoint: Endpoint, requests: Iterable[Any]) -> dict[str, str]:
    """The headers that a batch of `requests` needs."""
    sampled = any(samples(request.get("params")) for request in requests if isinstance(request, dict))
    return sampling_version(endpoint) if sampled else {}


def results_url(batch: Mapping[str, Any], endpoint: Endpoint) -> str:
    """Where the results of `batch` are: where it says, if that is at the endpoint, else where the API has them.

    A gateway passes on what the API says of itself; the key goes nowhere but to the gateway. Raises UsageError before
    the batch has ended, UnexpectedResponseError where its results are gone.
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
    return f"{batch_path(str(batch.get('id') or ''))}/results"


class Creation(Exchange):
    """A call that makes something each time, so that only an error response may be followed by another attempt.

    After anything else, a lost connection above all, the server may have made it: the API has no idempotency keys.
    """

    def failed(self, error: APIError) -> float:
        """As any call's, but final unless the server says that it did nothing."""
        if not (isinstance(error, APIStatusError) and error.status_code in _NOTHING_DONE):
            self._max_retries = 0
        return super().failed(error)


class Download(Exchange):
    """A call whose response is JSON Lines, of whatever content type."""

    _wanted = "a list of results"
    _closed_early = "the results were closed before they ended"

    def accepted(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the response holds what was asked for."""
        self.request_id = request_id_in(headers)
        coded = coding.of(headers)
        if status != 200 or not coding.can_undo(coded):
            return False
        self._begin(coded)
        # The last line as far as it came, joined only when it is whole, so that the time is linear in its length.
        self._parts: list[bytes] = []
        self._held = 0
        return True

    def lines(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` ends; b"" is the end of the body, which ends the last one too. Raises ProtocolError."""
        *lines, rest = (b"\n" if self.complete else data).split(b"\n")
        if lines:
            lines[0] = b"".join([*self._parts, lines[0]])
            self._parts, self._held = [], 0
        self._parts.append(rest)
        self._held += len(rest)
        if self._held > MAX_BODY:
            raise self.explained(ProtocolError(f"a line of the results is longer than {MAX_BODY >> 20} MiB"))
        return filter(bytes.strip, lines)

    def result(self, line: bytes) -> dict[str, Any]:
        """What a line holds. Raises ProtocolError."""
        value = object_in(line, loads_exact)
        if value is None:
            fault = ProtocolError(f"a line of the results is not a JSON object: {line[:_EXCERPT]!r}")
            raise self.explained(fault)
        return value

    def end(self) -> None:
        """The body ended, which is all there is to wait for."""
        self.accumulator.complete = True
