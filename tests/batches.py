"""A loopback server of the Message Batches endpoints (streamcli(7), section "Message Batches"), on real sockets.

`Case` is a run against it, in this process.

What a test controls:

* `polls`: a batch has ended when it is asked for the time after so many; 0 leaves it to `end`, which ends one at once.
* `outcome(custom_id, params)` gives the result of each request; the default says the prompt back. There, and in what
  is asked of batches here, ids are those of the input: without the mark that a part's requests carry.
* `faults[kind]`, where kind is "create", "list", "retrieve", "cancel" or "results": what happens instead of an answer,
  one after the other. Bytes are the answer as it is; CUT breaks off before anything was done, CUT_AFTER when it was.
  None is not a fault.
* `at(moment, kind)` is called in the server's thread when a request of that kind "arrived", was "done" but not
  answered, and was "answered"; nothing else happens to that request meanwhile.

As the API does, it keeps the counts at 0 until the end, sends results in an order of its own, and rejects a batch with
a custom_id twice, without params, or with `stream` in them.
"""

import io
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from server import PATIENCE, Listener, chunk, error_response, head, json_response, read_request

from streamcli import Client
from streamcli.batch.offload import Offload
from streamcli.batch.results import Results
from streamcli.batch.source import Source
from streamcli.batch.state import State
from streamcli.batch.statistics import Statistics

CUT, CUT_AFTER = object(), object()
_CREATED = "2026-11-22T10:00:{:02}Z"


def said(custom_id, params):
    """A succeeded result that says the last turn back."""
    text = {"type": "text", "text": f"re: {params['messages'][-1]['content']}"}
    message = {"id": f"msg_{custom_id}", "type": "message", "role": "assistant", "model": params["model"]}
    message |= {"content": [text], "stop_reason": "end_turn", "stop_sequence": None}
    return {"type": "succeeded", "message": message | {"usage": {"input_tokens": 3, "output_tokens": 5}}}


def unmarked(custom_id):
    """The id of the input's line."""
    return re.sub("-[0-9a-f]{8}$", "", custom_id)


def errored(kind="invalid_request_error", message="no"):
    """An errored result as the API has it: the whole error body inside."""
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": message}}}


CANCELED, EXPIRED = {"type": "canceled"}, {"type": "expired"}


@dataclass
class Batch:
    id: str
    requests: list
    headers: dict
    status: str = "in_progress"
    polls: int = 0
    results: list = field(default_factory=list)

    @property
    def ids(self):
        return [unmarked(request["custom_id"]) for request in self.requests]


class BatchesServer(Listener):
    """The endpoints; `batches` holds what was accepted, in the order of its coming, `asked` what kinds of requests."""

    def __init__(self, **fields):
        self.batches = []
        self.asked = []
        self.polls = 1
        self.outcome = said
        self.faults = {}
        self.at = lambda moment, kind: None
        # The path that the endpoints are below, and what the results' URL begins with, if not with ours.
        self.prefix = ""
        self.results_host = None
        # The results of a batch in the pieces that they are sent in; CUT among them breaks off.
        self.pieces = lambda body: [body]
        # As the results' head says it, whatever comes.
        self.framing = "chunked"
        self._changed, self._turn = threading.Condition(), threading.Lock()
        vars(self).update(fields)
        super().__init__()

    @property
    def accepted(self):
        """The custom ids of all requests that were accepted."""
        return [custom_id for batch in self.batches for custom_id in batch.ids]

    def came(self, kind, count=1):
        """Wait until that many requests of the kind have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked.count(kind) >= count, PATIENCE)

    def end(self, batch):
        """All that was to be done is done, or is left out because the batch was cancelled."""
        cancelled = batch.status == "canceling"
        batch.status = "ended"
        for request in batch.requests:
            result = CANCELED if cancelled else self.outcome(unmarked(request["custom_id"]), request["params"])
            batch.results.insert(len(batch.results) // 2, {"custom_id": request["custom_id"], "result": result})

    # What follows runs in the threads of the connections.

    def handle(self, connection, number):
        request = read_request(connection)
        with self._turn:  # one thing after the other
            if not request.path.startswith(f"{self.prefix}/v1/messages/batches"):
                connection.sendall(error_response(404, "not_found_error"))
                return
            kind, batch_id = self._kind(request)
            with self._changed:
                self.asked.append(kind)
                self._changed.notify_all()
            self.at("arrived", kind)
            fault = (self.faults.get(kind) or [None]).pop(0)
            if fault is CUT:
                return
            pieces = [fault] if isinstance(fault, bytes) else getattr(self, f"_{kind}")(request, batch_id)
            self.at("done", kind)
            if fault is CUT_AFTER:
                return
        for piece in pieces:
            if piece is CUT:
                return
            connection.sendall(piece)
        self.at("answered", kind)

    def _kind(self, request):
        path = urlsplit(request.path).path.removeprefix(f"{self.prefix}/v1/messages/batches")
        parts = path.strip("/").split("/")
        kinds = {("POST", 0): "create", ("GET", 0): "list", ("GET", 1): "retrieve"}
        if len(parts) == 2:
            return {"cancel": "cancel", "results": "results"}[parts[1]], parts[0]
        return kinds[request.method, len(list(filter(None, parts)))], parts[0]

    def _create(self, request, _):
        requests = request.json["requests"]
        ids = [each.get("custom_id") for each in requests]
        wrong = (
            not requests
            or len(set(ids)) < len(ids)
            or not all(isinstance(custom_id, str) for custom_id in ids)
            or not all(isinstance(each.get("params"), dict) and "stream" not in each["params"] for each in requests)
        )
        if wrong:
            return [error_response(400, message="requests: bad, or a custom_id twice")]
        batch = Batch(f"msgbatch_{len(self.batches) + 1:02}", requests, request.headers)
        self.batches.append(batch)
        return [json_response(self.shown(batch))]

    def _list(self, request, _):
        asked = dict(parse_qsl(urlsplit(request.path).query))
        newest_first = self.batches[::-1]
        ids = [batch.id for batch in newest_first]
        limit = int(asked.get("limit", 20))
        if "before_id" in asked:
            end = ids.index(asked["before_id"])
            page, more = newest_first[max(0, end - limit) : end], end > limit
        else:
            start = ids.index(asked["after_id"]) + 1 if "after_id" in asked else 0
            page, more = newest_first[start : start + limit], len(ids) > start + limit
        ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {"first_id": None, "last_id": None}
        return [json_response({"data": [self.shown(batch) for batch in page], "has_more": more, **ends})]

    def _retrieve(self, _, batch_id):
        batch = self._batch(batch_id)
        if batch is None:
            return [error_response(404, "not_found_error")]
        batch.polls += 1
        if batch.status != "ended" and (batch.polls == self.polls or batch.status == "canceling"):
            self.end(batch)
        return [json_response(self.shown(batch))]

    def _cancel(self, _, batch_id):
        batch = self._batch(batch_id)
        if batch.status == "in_progress":
            batch.status = "canceling"
        return [json_response(self.shown(batch))]

    def _results(self, request, batch_id):
        batch = self._batch(batch_id)
        if batch is None:
            yield error_response(404, "not_found_error")
            return
        if batch.status != "ended" or request.headers["accept"] != "application/binary":
            yield error_response(400)
            return
        body = b"".join(json.dumps(result).encode() + b"\n" for result in batch.results)
        length = len(body) if self.framing == "length" else None
        yield head(type="application/x-jsonl", chunked=length is None, length=length)
        for piece in self.pieces(body):
            yield piece if length or piece is CUT else chunk(piece)
        if length is None:
            yield chunk(b"")

    def _batch(self, batch_id):
        return next((batch for batch in self.batches if batch.id == batch_id), None)

    def shown(self, batch):
        counts = dict.fromkeys(["processing", "succeeded", "errored", "canceled", "expired"], 0)
        for kind in [each["result"]["type"] for each in batch.results] or ["processing"] * len(batch.requests):
            counts[kind] += 1
        ended = batch.status == "ended"
        host = self.url + self.prefix if self.results_host is None else self.results_host
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": batch.status,
            "request_counts": counts,
            "created_at": _CREATED.format(self.batches.index(batch)),
            "expires_at": "2026-11-23T10:00:00Z",
            "ended_at": "2026-11-22T11:00:00Z" if ended else None,
            "results_url": f"{host}/v1/messages/batches/{batch.id}/results" if ended else None,
        }


DEFAULTS = {"model": "m", "max_tokens": 16}


def prompts(*ids, **params):
    """Input lines in the batches' own format."""
    turn = {"role": "user", "content": "hi"}
    return [{"custom_id": custom_id, "params": {"messages": [turn], **params}} for custom_id in ids]


class Case:
    """An input, its output, and the state beside it; what a run is told is in `notes` and `seen`."""

    def __init__(self, api, path, lines):
        self.api = api
        self.output = path / "out.jsonl"
        self.state = path / "out.jsonl.batches"
        self.lines = lines
        self.notes, self.seen = [], []

    def show(self, counts):
        if self.seen[-1:] != [counts]:
            self.seen.append(counts)

    def work(self, do=Offload.run, *, resume=False, retry_errors=True, url=None, **options):
        """Do one run's work; returns the status of its results."""
        text = b"".join((json.dumps(line).encode() if line else b"") + b"\n" for line in self.lines)
        source = Source(io.BytesIO(text), "in.jsonl", DEFAULTS, lambda text: {"role": "user", "content": text}, False)
        source.check()
        client = Client(base_url=url or self.api.url, api_key="sk-secret")
        with (
            client,
            Results(str(self.output), source, resume=resume, retry_errors=retry_errors) as results,
            State(str(self.state), client.endpoint.base_url) as state,
        ):
            self.statistics = Statistics(source.count, results.recorded)
            told = {"statistics": self.statistics, "note": self.notes.append, "show": self.show}
            do(Offload(client, source, results, state=state, **told, **options))
            return results.status

    def resume(self, do=Offload.run, **options):
        return self.work(do, resume=True, **options)

    def cancel(self):
        self.resume(Offload.cancel)

    @property
    def results(self):
        """Each line of output: its id and what became of it."""
        records = [json.loads(line) for line in self.output.read_text().splitlines()]
        return [(record["custom_id"], record["result"]["type"]) for record in records]

    @property
    def journal(self):
        return [json.loads(line) for line in self.state.read_text().splitlines()]


def succeeded(*ids):
    return [(custom_id, "succeeded") for custom_id in ids]
