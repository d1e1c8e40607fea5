"""completions/: what Tab offers in bash, zsh and fish, in the real shells on a terminal, and no Python is started."""

import re
import shutil

import pexpect
import pytest
from faults_command import streamcli
from server import error_response, json_response

from completions import FOLDER, MADE, kind, names
from streamcli.cli.args import OPTIONS

TAB, DONE = "\t", "~done~"
# How a shell that has nothing of its owner's begins, and takes the completion.
SHELLS = {
    "bash": (["--norc", "--noprofile"], "source {folder}/streamcli; bind 'set bell-style none'; PS1='> '"),
    "zsh": (["-f"], "autoload -Uz compinit; compinit -D -u; source {folder}/_streamcli; unsetopt beep; PS1='> '"),
    "fish": (["--no-config"], "source {folder}/streamcli.fish; function fish_prompt; echo '> '; end"),
}


@pytest.fixture(params=SHELLS, scope="module")
def tab(request, tmp_path_factory):
    """What the line becomes, once Tab was pressed behind it and Enter after that; one shell for all lines."""
    shell = shutil.which(request.param)
    if not shell:
        pytest.skip(f"{request.param} is not installed")
    tmp_path = tmp_path_factory.mktemp(request.param)
    (tmp_path / "question one.txt").touch()
    (tmp_path / "answer.tape").touch()
    for name, text in (
        (".cache/streamcli/models", "qwen2:7b\nclaude-sonnet-5-5\n"),
        (".config/streamcli/config.toml", 'model = "m"\n[profile.box]\nmodel = "n"\n[ profile ]\n[profile."lab-2"]\n'),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    # What was typed, a word a line; were it Python that completes, this would not do.
    script = bin_folder / "streamcli"
    script.write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho "~do"ne~\n')
    script.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{bin_folder}:/usr/bin:/bin", "TERM": "dumb", "LANG": "C.UTF-8"}
    options, setup = SHELLS[request.param]
    terminal = pexpect.spawn(
        shell, options, cwd=tmp_path, env=environment, encoding="utf-8", timeout=20, dimensions=(50, 300)
    )
    terminal.sendline(setup.format(folder=FOLDER) + "; echo rea''dy")
    terminal.expect("ready\r")

    def completed(line):
        terminal.send(line + TAB)
        terminal.send("\r" if line.endswith(" ") else " \r")
        terminal.expect(f"((?:<[^>]*>)*){DONE}")
        return re.findall("<([^>]*)>", terminal.match[1])

    yield completed
    terminal.close(force=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("streamcli --max-tok", ["--max-tokens"]),
        ("streamcli --ignore", ["--ignore-stdin"]),
        ("streamcli -f que", ["-f", "question one.txt"]),
        ("streamcli --replay ans", ["--replay", "answer.tape"]),
        ("streamcli -m cla", ["-m", "claude-sonnet-5-5"]),
        ("streamcli -m qwen2:", ["-m", "qwen2:7b"]),
        ("streamcli --profile b", ["--profile", "box"]),
        ("streamcli --profile la", ["--profile", "lab-2"]),
        ("streamcli --auth b", ["--auth", "bearer"]),
        ("streamcli --effort xh", ["--effort", "xhigh"]),
        ("streamcli --fail-on ref", ["--fail-on", "refusal"]),
    ],
)
def test_tab_completes(tab, line, words):
    assert tab(line) == words


def test_what_stands_behind_an_equals_sign_is_completed_too(tab):
    assert [word.removeprefix("--replay=") for word in tab("streamcli --replay=ans")] == ["answer.tape"]


def test_words_of_a_prompt_are_left_alone(tab):
    assert tab("streamcli que") == ["que"]
    assert tab("streamcli -- --max-t") == ["--", "--max-t"]


@pytest.mark.parametrize("name", MADE)
def test_a_file_is_what_is_made_from_the_options(name):
    assert (FOLDER / name).read_text() == MADE[name](), "run `make completions`"


def test_zsh_cuts_no_description_on_80_columns():
    rows = re.findall(r"(?:\{-\w,)?--([\w,-]+)=?}?'?\[(.*?)(?<!\\)\]", MADE["_streamcli"]())
    assert len(rows) > len(OPTIONS)
    # Names that share a description are columns side by side.
    assert not [name for name, _ in rows if "," in name]
    assert max(len(f"--{name}  -x -- ") for name, _ in rows) + max(len(text.replace("\\", "")) for _, text in rows) < 80


def test_every_option_is_in_all_of_them():
    assert all(kind(option) is not None for option in OPTIONS)
    known = {name for option in OPTIONS for name in names(option)}
    for file in ("streamcli", "_streamcli"):
        assert known <= set(re.findall(r"(?<![\w-])-[\w-]+", (FOLDER / file).read_text()))
    fish = (FOLDER / "streamcli.fish").read_text()
    assert [n for n in known if (f" -l {n[2:]} " if n.startswith("--") else f" -s {n[1:]} ") not in fish] == []


def test_models_come_from_what_the_command_listed_last(server, tmp_path):
    page = json_response({"data": [{"id": "qwen2:7b"}, {"id": "b\x1b[1m"}], "has_more": False})
    server.responses = [page, page, error_response(500, x_should_retry="false")]
    homes = [{"HOME": "/dev/null", "XDG_CACHE_HOME": "here"}, *[{"HOME": str(tmp_path), "XDG_CACHE_HOME": None}] * 2]
    ended = [streamcli("--base-url", server.url, "--models", env=home, cwd=tmp_path).status for home in homes]
    assert ended == [0, 0, 5]
    assert (tmp_path / ".cache/streamcli/models").read_bytes() == b"qwen2:7b\nb^[[1m\n"
    assert not (tmp_path / "here").exists()
