"""README.md: its programs run, and its options exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from server import ok, text_events

from streamcli.cli.args import command

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PRINTED = ["Hello there.\nend_turn 7\n", "Hello there.\n[7 tokens]\n", "Hello there.\nHello there.\n"]


@pytest.mark.parametrize(
    ("program", "printed"), list(zip(PROGRAMS, PRINTED, strict=True)), ids=["text", "events", "async"]
)
def test_a_program_of_the_library_section_runs_as_it_stands(server, program, printed):
    server.answers = [ok(*text_events("Hello", " there."))]
    environment = {**os.environ, "ANTHROPIC_BASE_URL": server.url}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr, run.returncode) == (printed, "", 0)


def test_every_option_it_names_exists():
    known = {name for option in command().params for name in option.opts}
    commands = re.findall(r"streamcli ([^\n|`]*)", "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL)))
    named = {word for line in commands for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", line)}
    assert named
    assert named <= known
