"""Prints the table of endings: what streamcli and its peers make of the same answers, broken in every usual way.

Each cell is the exit status, what stood on standard output (full, part, none, or other: an error text, a raw stream)
and how many requests were made, if more than one. "Wrong 0" counts the answers that were broken or never came and
ended with status 0 all the same. A contender that runs for longer than --patience hangs. The peers are those of
tests/bench/install.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import install

HERE = Path(__file__).absolute().parent
sys.path.insert(0, str(HERE.parent))

import server as said  # noqa: E402
from server import HANG, MESSAGE_STOP, RESET, Server  # noqa: E402

TEXT = "One two three four five."
WORDS = [word + " " for word in TEXT.split()]
WHOLE = "".join(WORDS)
EVENTS = said.text_stream(*WORDS)
PART = said.opening(*WORDS[:3])
BUSY = said.error_response(529, "overloaded_error", "Overloaded", retry_after_ms=50)
ERROR = said.event("error", error={"type": "overloaded_error", "message": "Overloaded"})
UNKNOWN = said.event("weather", sun=True) + b"event: note\ndata: not JSON\n\n"
LIKE_JSON = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
LIKE_JSON |= {"content": [{"type": "text", "text": WHOLE}], "usage": {"input_tokens": 3, "output_tokens": 7}}


def framed(*parts):
    """A response that says where it would end, whatever comes of it."""
    return [said.head(chunked=True), *(said.chunk(part) for part in parts)]


# Each ending: what the server says, one answer a connection, and whether it is a whole answer.
ENDINGS = {
    "complete": ([said.ok(EVENTS)], True),
    "cut in mid-text (reset)": ([[*framed(PART), 0.2, RESET]], False),
    "ended cleanly, no message_stop": ([said.ok(PART)], False),
    "error event after text": ([said.ok(PART, ERROR)], False),
    "overloaded event before text": ([said.ok(said.message_start(), ERROR)], False),
    "max_tokens": ([said.ok(said.text_stream(*WORDS[:3], stop_reason="max_tokens"))], True),
    "refusal after text": ([said.ok(said.refused(WORDS[0], category="cyber", explanation="No."))], False),
    "529 twice, then fine": ([BUSY, BUSY, said.ok(EVENTS)], True),
    "529 always": ([BUSY], False),
    "401": ([said.error_response(401, "authentication_error")], False),
    "400": ([said.error_response(400)], False),
    "HTML, 200": ([said.head(type="text/html") + b"<html><body><h1>Please log in</h1></body></html>"], False),
    "20,000 pings": ([said.ok(said.message_start(), said.event("ping") * 20000, EVENTS.partition(b"\n\n")[2])], True),
    "unknown events": ([said.ok(said.message_start(), UNKNOWN, EVENTS.partition(b"\n\n")[2])], True),
    "message as JSON, no stream": ([said.json_response(LIKE_JSON)], True),
    "end_turn without content": ([said.ok(said.message_start(), said.message_delta(), MESSAGE_STOP)], True),
    "200, no event at all": ([said.ok(b"\n", framing="length")], False),
    "one byte a write": ([[said.head(), *(EVENTS[n : n + 1] for n in range(len(EVENTS)))]], True),
    "silent after some text": ([[*framed(PART), HANG]], False),
    "kept open after message_stop": ([[*framed(EVENTS), HANG]], True),
}


def contenders(found, python, url):
    """The command of each that is there, run by a shell, and what it does for text alone."""
    body = json.dumps({"model": "m", "max_tokens": 99, "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    curl = f"curl -sSN -H 'content-type: application/json' -d '{body}' {url}/v1/messages"
    curl += " | sed -un 's/^data: //p' | jq -j --unbuffered '.delta.text // empty'"
    commands = {
        "streamcli": f"{python.parent}/streamcli -I --idle-timeout 5 hi",
        "llm": f"{found.get('llm')}/bin/llm -m claude-sonnet-4.5 --no-log hi",
        "Python SDK": f"{found.get('anthropic')}/bin/python {HERE}/peers/anthropic_sdk.py text {url}",
        "Node SDK": f"node {found.get('node-sdk')}/sdk.mjs {url}",
        "curl, sed and jq": curl,
        "with pipefail": f"set -o pipefail; {curl.replace('-sSN', '-sSNf')}",
    }
    needs = {"llm": ["llm"], "Python SDK": ["anthropic"], "Node SDK": ["node", "node-sdk"]}
    needs |= {name: ["curl", "sed", "jq"] for name in ("curl, sed and jq", "with pipefail")}
    return {name: command for name, command in commands.items() if all(need in found for need in needs.get(name, []))}


def outcome(command, environment, patience):
    """The status, or None where it hangs, and what it wrote."""
    with subprocess.Popen(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            written, _ = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]
    return process.returncode, written


def cell(status, written, requests):
    """What is shown of one run."""
    text = written.decode("utf-8", "replace").strip()
    what = "full" if text == WHOLE.strip() else "none" if not text else "part" if WHOLE.startswith(text) else "other"
    return f"{'hang' if status is None else status} {what}{f' x{requests}' if requests > 1 else ''}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=HERE.parents[1] / "build" / "bench")
    parser.add_argument("--patience", type=float, default=20, help="seconds after which a run hangs (%(default)s)")
    options = parser.parse_args()
    cache = options.cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    found, python = install.install(cache), install.streamcli(cache)
    if "node-sdk" in found:  # Node looks for what a script imports beside the script
        (found["node-sdk"] / "sdk.mjs").write_bytes((HERE / "peers" / "sdk.mjs").read_bytes())
    print("; ".join(install.versions(found)), "\n")
    names = list(contenders(found, python, ""))
    print(f"| ending | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    wrong = dict.fromkeys(names, 0)
    for ending, (answers, is_whole) in ENDINGS.items():
        cells = []
        for name in names:
            with Server(*answers) as server:
                environment = {
                    "PATH": os.environ["PATH"],
                    "HOME": str(cache),
                    "LLM_USER_PATH": str(cache / "llm-home"),
                    "ANTHROPIC_API_KEY": "bench",
                    "ANTHROPIC_BASE_URL": server.url,
                }
                status, written = outcome(contenders(found, python, server.url)[name], environment, options.patience)
                cells.append(cell(status, written, len(server.requests)))
            wrong[name] += status == 0 and not is_whole
        print(f"| {ending} | {' | '.join(cells)} |", flush=True)
    print(f"| **wrong 0** | {' | '.join(map(str, wrong.values()))} |")


if __name__ == "__main__":
    main()
