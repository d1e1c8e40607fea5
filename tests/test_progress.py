"""streamcli.cli.progress on real terminals: what is drawn, and that it is gone in the end.

It is slow, for what is drawn a few times a second has to be seen for a second.
"""

import os
import re
import sys

import pexpect
import pytest
from server import (
    MESSAGE_STOP,
    Server,
    block_start,
    chunk,
    head,
    message_delta,
    message_start,
    text_delta,
)

from streamcli.cli.progress import Line


def screen(output, width=80):
    """The lines that a terminal shows after `output`."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", output):
        if part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
            column = 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][column + len(part) :]
            column += len(part)
    assert all(len(line) < width for line in lines)
    return lines


def run(url, *words, columns=80):
    """What the command did to a terminal that is its standard output and error both."""
    environment = {"PATH": os.environ["PATH"], "ANTHROPIC_BASE_URL": url, "TERM": "xterm"}
    child = pexpect.spawn(
        sys.executable, ["-m", "streamcli", "-I", *words, "hi"], env=environment, encoding="utf-8", timeout=20,
        dimensions=(24, columns),
    )  # fmt: skip
    child.expect(pexpect.EOF)
    child.close()
    return child.before, child.exitstatus


def slow(*texts):
    """An answer whose parts come a quarter of a second apart."""
    yield head(chunked=True)
    for event in [message_start(), block_start(), *map(text_delta, texts)]:
        yield 0.25
        yield chunk(event)
    yield chunk(message_delta() + MESSAGE_STOP)


def test_an_answer_to_a_file_leaves_nothing_on_the_terminal(tmp_path):
    with Server(list(slow("a", "b", "c"))) as server:
        output, status = run(server.url, "--progress", "-o", str(tmp_path / "answer"))
    assert (status, (tmp_path / "answer").read_text()) == (0, "abc")
    assert re.search(r"waiting \d\.\d s", output)
    assert re.search(r"[12] tokens  \d+/s  \d\.\d s", output)
    assert screen(output) == [""]


def test_the_cost_grows_with_the_tokens_where_there_is_a_price(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('[price."m"]\ninput_tokens = 1000\noutput_tokens = 1000000\n')
    with Server(list(slow("a", "b", "c"))) as server:
        output, _ = run(server.url, "--progress", "-o", str(tmp_path / "answer"), "--config", str(config))
    drawn = re.findall(r"(\d) tokens  \d+/s  \d\.\d s  cost (\d)\.003", output)
    assert drawn
    assert all(tokens == cost for tokens, cost in drawn)


def test_text_on_the_same_terminal_takes_its_place():
    with Server(list(slow("a", "b"))) as server:
        output, status = run(server.url, "--progress")
    assert "waiting" in output
    assert "tokens" not in output
    assert (screen(output), status) == (["ab", ""], 0)


def test_an_error_stands_alone():
    with Server([head(chunked=True), 0.3, chunk(message_start()), 0.3]) as server:
        output, status = run(server.url, "--progress", "--message", "--retries", "0")
    assert "waiting" in output
    assert status == 8
    assert [line.partition(":")[0] for line in screen(output, width=200)] == ["streamcli", ""]


def test_quiet_and_pipes_have_none(tmp_path):
    with Server(list(slow("a"))) as server:
        output, _ = run(server.url, "--progress", "-q", "-o", str(tmp_path / "answer"))
    assert output == ""


def test_it_is_not_wider_than_the_terminal(tmp_path):
    with Server(list(slow("a", "b"))) as server:
        output, _ = run(server.url, "--progress", "-o", str(tmp_path / "answer"), columns=8)
    assert screen(output, width=8) == [""]


@pytest.fixture
def drawn(monkeypatch):
    written = []
    monkeypatch.setattr("streamcli.cli.progress._write", written.append)
    return written


def test_it_is_drawn_a_few_times_a_second(drawn):
    now = iter([0.0, 0.05, 0.1, 0.15, 0.21])
    line = Line(clock=lambda: next(now) + 1)
    for _ in range(5):
        line.draw(lambda: "x")
    assert len(drawn) == 3


def test_nothing_is_drawn_while_something_else_is_written_nor_after_the_end(drawn):
    line = Line()
    with line:
        line.draw(lambda: "x")
    assert drawn == []
    line.close()
    line.draw(lambda: "x")
    assert drawn == []
