"""What the command does, as documents: every case in tests/cli/*.txt is run as by a shell and compared.

A case begins with `== ` and a sentence. Its lines are

    $ COMMAND          a line of the shell's script, which runs in an empty directory; `streamcli` is the command
    file NAME: TEXT    a file there; `stdin: TEXT` is what the script reads, /dev/null if it is left out
    response: PYTHON   what the server says to a connection, in the words of tests/server.py; the last one repeats
    stream: TEXT       the event stream it says; with neither it is a whole message that holds no text
    stdout: TEXT       what the script wrote, nothing if it is left out; so `stderr`; `status: N`, 0 if left out
    requests: N        how many the server saw; left out, none where the status is 2 or 10, else one
    prompt: JSON       the content of the only message of the last request
    body: JSON         its body; `body FIELD: JSON` a field of it, null where it is missing
    header NAME: TEXT  a header of it; `-` says that there is none
    # ...              a remark

`KEY: TEXT` is text without a line end and `KEY| TEXT` a line of it; several add up. In what is expected `[..]` stands
for anything on a line, and `http://server` for the server's address, which the command has from ANTHROPIC_BASE_URL.
Nothing else is in its environment but PATH and HOME. A case is selected by its words: pytest -k one-blank-line.

Slow are only the cases that wait, as for a standard input that stays silent, and one in fifty, in which each start of
the command is a true one (tests/starter.py); TRUE_STARTS=1 makes it all of them.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from itertools import zip_longest
from pathlib import Path

import pytest
import server
import starter
from faults_command import COMMAND, alone, streamcli

# A script that is one command of words that a shell passes on as they are written: it is started without one.
PLAIN = re.compile(r"""streamcli( ([\w./:=,+@%^-]|'[^']*'|"[^"$`\\]*")+)*\n""")
FIELD = re.compile(
    r"(file|stdin|response|stream|stdout|stderr|status|requests|prompt|body|header)(?: (\S+?))?([:|])( .*)?"
)
# A block of an unknown type, because an answer that holds nothing is noted.
_NO_TEXT = server.block_start(type="drawing"), server.block_stop(), server.message_delta(), server.MESSAGE_STOP
NO_TEXT = server.ok(server.message_start(), *_NO_TEXT)


class Case:
    def __init__(self, subject, sentence):
        self.id = f"{subject}:" + "-".join(re.findall(r"[\w.]+", sentence))
        self.script, self.stdin, self.stream = "", None, ""
        self.files, self.responses = {}, []
        self.expected = {"stdout": "", "stderr": "", "status": 0}

    def add(self, line):
        if line.startswith("$ "):
            self.script += line[2:] + "\n"
            return
        match = FIELD.fullmatch(line)
        assert match, f"{self.id}: not understood: {line}"
        key, name, mark, text = match.groups(default="")
        text = text[1:] + "\n" * (mark == "|")
        if key in {"stdin", "stream"}:
            setattr(self, key, (getattr(self, key) or "") + text)
        elif key == "file":
            self.files[name] = self.files.get(name, "") + text
        elif key == "response":
            self.responses.append(eval(text, vars(server)))
        elif key in {"stdout", "stderr"}:
            self.expected[key] += text
        else:
            self.expected[f"{key} {name}".strip()] = text if key == "header" else json.loads(text)


def read(path):
    cases = []
    for line in path.read_text("utf-8").split("\n"):
        if line.startswith("== "):
            cases.append(Case(path.stem, line[3:]))
        elif line and not line.startswith("#"):
            cases[-1].add(line)
    return cases


def run(case, folder, path):
    """What is expected of the case, and what it did, in the same terms."""
    for name, text in case.files.items():
        (folder / name).write_bytes(text.encode())
    with server.Server(*(case.responses or [server.ok(case.stream.encode()) if case.stream else NO_TEXT])) as endpoint:
        environment = {"PATH": path, "HOME": str(folder), "ANTHROPIC_BASE_URL": endpoint.url}
        command = ["sh", "-c", case.script]
        if PLAIN.fullmatch(case.script):
            command = [*COMMAND, *shlex.split(case.script)[1:]]
        given = {"stdin": subprocess.DEVNULL if case.stdin is None else case.stdin.encode()}
        ended = streamcli(command=command, env=alone(**environment), cwd=folder, within=60, **given)
        asked = endpoint.requests
    status = ended.status if ended.status >= 0 else 128 - ended.status
    expected = {"requests": 0 if case.expected["status"] in {2, 10} else 1, **case.expected}
    actual = {"status": status, "requests": len(asked)}
    for key, text in (("stdout", ended.out.decode("utf-8", "backslashreplace")), ("stderr", ended.err)):
        actual[key] = as_expected(text.replace(endpoint.url, "http://server"), case.expected[key])
    for key in expected.keys() - actual.keys():
        actual[key] = detail(asked[-1], key) if asked else "no request"
    return expected, actual


def as_expected(text, expected):
    """`text` with the lines that fit what is expected replaced by it, so that a comparison shows only the others."""
    pairs = zip_longest(text.split("\n"), expected.split("\n"))
    lines = (pattern if fits(line, pattern) else line for line, pattern in pairs)
    return "\n".join(line for line in lines if line is not None)


def fits(line, pattern):
    return None not in {line, pattern} and re.fullmatch(re.escape(pattern).replace(r"\[\.\.\]", ".*"), line, re.DOTALL)


def detail(request, key):
    kind, _, name = key.partition(" ")
    if kind == "header":
        return request.headers.get(name, "-")
    if kind == "prompt":
        (message,) = request.json["messages"]
        return message["content"]
    return request.json.get(name) if name else request.json


CASES = [case for path in sorted((Path(__file__).parent / "cli").glob("*.txt")) for case in read(path)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case, tmp_path):
    if re.search(r"\bjq\b", case.script + "".join(case.files.values())) and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    expected, actual = run(case, tmp_path, f"{starter.folder()}:{os.environ['PATH']}")
    assert actual == expected
