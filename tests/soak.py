"""Minutes of streams with random faults: every status must be right, and neither memory nor descriptors may grow.

    python tests/soak.py [--minutes 3] [--seed N]

One loopback server misbehaves as the prompt says. The command is run against it as a user would, and the library in
this process, where growth can be seen, many times for each run of the command; faults, cuts and sizes are drawn at
random. Exits 1 where anything was wrong.
"""

import argparse
import collections
import os
import random
import subprocess
import sys
import time

import server as answers

from streamcli import APIError, Client
from streamcli.errors import StreamError

WORDS = ("one", " two", " three", " four\n")
# Growth of resident memory that is no leak: arenas settle for a while after the warm-up.
ALLOWED_GROWTH = 6 * 1024 * 1024
WARM_UP = 300
LIBRARY_STREAMS_PER_COMMAND = 25


def whole(chance):
    framing = chance.choice(["chunked", "length", "close"])
    return answers.ok(*answers.text_events(*chance.choices(WORDS, k=chance.randint(1, 200))), framing=framing)


def cut(chance):
    answer = whole(chance)
    head = answer.index(b"\r\n\r\n") + 4
    stop = answer.index(b"event: message_stop")
    return answer[: chance.randint(head, stop)]


def large(chance):
    return answers.ok(*answers.text_events("x" * chance.randint(10_000, 1_000_000)))


def rubbish(chance):
    return answers.ok(
        answers.opening("a"), b"data: " + chance.randbytes(40).replace(b"\n", b"").replace(b"\r", b"") + b"\n\n"
    )


def event_error(chance):
    kind = chance.choice(["overloaded_error", "api_error", "new_error"])
    return answers.ok(answers.opening("par"), answers.event("error", error={"type": kind, "message": "no"}))


# What the prompt asks for → how the server answers, and the status that must come of it.
FAULTS = {
    "whole": (whole, 0),
    "large": (large, 0),
    "cut": (cut, 8),
    "reset": (lambda chance: (cut(chance), answers.RESET), 8),
    "rubbish": (rubbish, 8),
    "error event": (event_error, 8),
    "silent": (lambda chance: (cut(chance), answers.HANG), 7),
    "drip": (lambda chance: (answers.ok(answers.opening("a"))[:-5], *(b"3\r\n: \n\r\n", 0.05) * 200), 7),
    "gone": (lambda chance: (answers.RESET,), 6),
    "no http": (lambda chance: b"SSH-2.0-server\r\n" + chance.randbytes(20), 3),
    "refused": (lambda chance: answers.error_response(400), 3),
    "no key": (lambda chance: answers.error_response(401, "authentication_error"), 4),
    "busy": (lambda chance: answers.error_response(529, "overloaded_error"), 5),
    "page": (lambda chance: answers.head(type="text/html") + b"<html>" * chance.randint(1, 2000), 3),
    "bad chunk": (lambda chance: answers.head(chunked=True) + answers.chunk(answers.opening("a")) + b"zz\r\n", 8),
    "after the end": (lambda chance: (answers.ok(*answers.text_events("a"))[:-5], answers.HANG), 0),
}


def command(url, fault):
    """The status of one run of the command."""
    words = ["-I", "--retries", "0", "--idle-timeout", "0.5", "--timeout", "1.5", "--base-url", url, fault]
    run = subprocess.run([sys.executable, "-m", "streamcli", *words], capture_output=True, check=False)
    assert b"Traceback" not in run.stderr, run.stderr.decode()
    return run.returncode


def library(client, fault):
    """The status that the command would end with, of one stream of the library."""
    output = False
    try:
        with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": fault}]) as stream:
            for _ in stream.text_stream:
                output = True
    except APIError as error:
        return StreamError.exit_code if output and getattr(error, "in_stream", False) else error.exit_code
    return 0


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    chance = random.Random(options.seed)

    def answer(request):
        fault = request.json["messages"][-1]["content"]
        return FAULTS[fault][0](chance)

    counts, wrong = collections.Counter(), []

    def check(how, fault, status):
        counts[how, fault] += 1
        if status != FAULTS[fault][1]:
            wrong.append((how, fault, status))
            print(f"wrong: {how} {fault}: {status} is not {FAULTS[fault][1]}", flush=True)

    until = time.monotonic() + options.minutes * 60
    before = None
    with (
        answers.Server(answer) as server,
        Client(base_url=server.url, max_retries=0, timeout=0.5, total_timeout=1.5) as client,
    ):
        while time.monotonic() < until:
            fault = chance.choice(list(FAULTS))
            check("command", fault, command(server.url, fault))
            for fault in chance.choices(list(FAULTS), k=LIBRARY_STREAMS_PER_COMMAND):
                check("library", fault, library(client, fault))
            server.forget()
            if before is None and counts.total() > WARM_UP:
                before = resident(), descriptors()
        after = resident(), descriptors()
    faults = sum(number for (_, fault), number in counts.items() if fault not in {"whole", "large"})
    print(f"seed {options.seed}: {counts.total()} streams, {faults} faults, {len(wrong)} wrong statuses")
    for how in ("command", "library"):
        print(f"  {how}: " + ", ".join(f"{fault} {counts[how, fault]}" for fault in FAULTS))
    grown = after[0] - before[0] if before else 0
    print(f"  resident memory {after[0] >> 20} MiB, grown by {grown >> 10} KiB; descriptors {after[1]}")
    return bool(wrong) or grown > ALLOWED_GROWTH or (before is not None and after[1] > before[1] + 2)


if __name__ == "__main__":
    if "MALLOC_ARENA_MAX" not in os.environ:  # else the C library keeps memory for each thread that the server had
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_ARENA_MAX": "1"})
    sys.exit(main())
