"""README.md: its programs run, and its options exist."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import starter
from server import ok, text_events

from streamcli.cli.args import command
from streamcli.turns.tools import described, results

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README.partition("\n## Library\n")[2], re.DOTALL)
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL))
PRINTED = ["Hello there.\nend_turn 7\n", "Hello there.\n[7 tokens]\n", "Hello there.\nHello there.\n"]


@pytest.mark.parametrize(
    ("program", "printed"), list(zip(PROGRAMS, PRINTED, strict=True)), ids=["text", "events", "async"]
)
def test_a_program_of_the_library_section_runs_as_it_stands(server, program, printed):
    server.responses = [ok(*text_events("Hello", " there."))]
    environment = {**os.environ, "ANTHROPIC_BASE_URL": server.url}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr, run.returncode) == (printed, "", 0)


def test_every_option_it_names_exists():
    known = {name for option in command().params for name in option.opts}
    commands = re.findall(
        r"streamcli ([^\n|`]*)", "\n".join(re.findall(r"```(?:console|sh)\n(.*?)```", README, re.DOTALL))
    )
    named = {word for line in commands for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", line)}
    assert named
    assert named <= known


@pytest.fixture
def folder(tmp_path):
    """A folder with the tools of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.parametrize(
    ("tool", "given", "result"),
    [
        ("search", {"pattern": "class (Journal|Tape)"}, "./a.py:2:class Journal:"),
        ("search", {"pattern": "nothing like it"}, "(no output)"),
        ("date_after", {"days": 100, "start": "2026-11-22"}, "Tuesday 2027-03-02"),
    ],
)
def test_its_tools_describe_themselves_and_answer(folder, tool, given, result, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "a.py").write_text("# text\nclass Journal:\n")
    programs = described([f"./{name}" for name in FILES], environment=os.environ, timeout=20)
    call = {"type": "tool_use", "id": "t", "name": tool, "input": given}
    (block,) = results([call], programs, environment=os.environ, timeout=20)
    assert block == {"type": "tool_result", "tool_use_id": "t", "content": result}


@pytest.mark.skipif(not shutil.which("parallel"), reason="GNU parallel is not installed")
def test_gnu_parallel_deals_the_lines_of_a_batch_out(server, tmp_path):
    server.responses = [lambda request: ok(*text_events(request.json["messages"][0]["content"]))]
    lines = [json.dumps({"custom_id": f"q{number}", "prompt": f"prompt {number}"}) for number in range(9)]
    path = f"{starter.folder()}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "ANTHROPIC_BASE_URL": server.url}
    run = subprocess.run(
        ["parallel", "--will-cite", "--pipe", "-N", "2", "streamcli", "--batch", "-"],
        input="".join(f"{line}\n" for line in lines), env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    results = [json.loads(line) for line in run.stdout.splitlines()]
    answers = {result["custom_id"]: result["result"]["message"]["content"][0]["text"] for result in results}
    assert len(results) == 9
    assert answers == {f"q{number}": f"prompt {number}" for number in range(9)}


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_its_batch_of_a_file_of_questions_runs_as_it_stands(server, tmp_path):
    server.responses = [lambda request: ok(*text_events(request.json["messages"][0]["content"]))]
    (tmp_path / "questions.txt").write_text("first?\nsecond?\n")
    block = next(text for text in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "questions.txt" in text)
    script = "".join(f"{line}\n" for line in block.splitlines() if "--offload" not in line)
    path = f"{starter.folder()}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "ANTHROPIC_BASE_URL": server.url}
    run = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (sorted(run.stdout.splitlines()), run.stderr, run.returncode) == (["q1\tfirst?", "q2\tsecond?"], "", 0)
