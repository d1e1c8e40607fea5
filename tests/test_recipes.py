"""streamcli-recipes(7): every recipe is run by a shell as it stands, and what it asks and leaves is compared.

The README shows ten of them, word for word.

Programs of other people that need a screen or an account have stand-ins with the same interface.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import starter
from batches import BatchesServer
from server import (
    MESSAGE_STOP,
    Server,
    block_start,
    block_stop,
    delta,
    error_response,
    message_delta,
    message_start,
    ok,
    text_stream,
)

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "man" / "streamcli-recipes.7").read_text()
README = (ROOT / "README.md").read_text()
NIGHT = "Many prompts by night"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
TOOL = """#!/bin/sh
[ "$1" = --describe ] && exec echo '{"name":"measure","description":"d","input_schema":{"type":"object"}}'
echo 500 GB
"""
BUSY = error_response(529, "overloaded_error", x_should_retry="false")


def answer(text):
    return ok(text_stream(text))


def call(name, **given):
    block = [block_start(type="tool_use", id="t", name=name, input={})]
    block += [delta("input_json_delta", partial_json=json.dumps(given)), block_stop()]
    return ok(message_start(), *block, message_delta("tool_use"), MESSAGE_STOP)


def busy_once(word):
    """A server that is busy when it is asked for that word, the first time."""
    left = [BUSY]
    return lambda request: left.pop() if left and word in str(request.json) else answer("Yes.")


class Recipe(NamedTuple):
    """What there is before it, what the server says, and what comes of it.

    `asked` are texts, one for each request in its order, that its body holds; `left` are files with what they hold.
    """

    responses: list[bytes]
    asked: list[str]
    printed: str = ""
    left: Mapping[str, str] = MappingProxyType({})
    files: Mapping[str, str | bytes] = MappingProxyType({})
    typed: str = ""


RECIPES: dict[str, Recipe] = {
    "A commit message from what is staged": Recipe(
        [answer("Say more\n")], ["+two"], left={"log": "Say more\n"}, files={"a": "one\n"}
    ),
    "Why a build fails": Recipe(
        [answer("a is missing")], ["No rule to make target"], "a is missing", files={"Makefile": "all: a"}
    ),
    "One field out of free text": Recipe(
        [answer('{"due":"2026-12-01"}')], ["Pay by December"], "2026-12-01\n", files={"invoice.txt": "Pay by December."}
    ),
    "Each word as it comes, for another program": Recipe([answer("Once.")], ["a story"], "Once."),
    "The same question for many files": Recipe(
        [answer("about a"), answer("about b")],
        ["text of a", "text of b"],
        left={"a.txt.summary": "about a", "b.txt.summary": "about b"},
        files={"a.txt": "text of a", "b.txt": "text of b"},
    ),
    "Markdown on the terminal": Recipe([answer("# Quoting")], ["quoting"], "rendered: # Quoting"),
    "The picture in the clipboard": Recipe([answer("It says hello.")], ["image/png"], "It says hello."),
    "Alternative texts for pictures": Recipe(
        [answer("A cat.")], ["image/png"], left={"cat.png.alt": "A cat."}, files={"cat.png": PNG}
    ),
    "Another server if the first one cannot": Recipe(
        [BUSY, answer("Yes.")], ["claude", "qwen"], left={"answer": "Yes."}, files={"question": "Is it?"}
    ),
    "Several models asked the same": Recipe(
        [lambda request: answer(request.json["model"])],
        ["Is it?", "Is it?"],
        left={"claude-sonnet-5-5.txt": "claude-sonnet-5-5", "claude-haiku-5.txt": "claude-haiku-5"},
        files={"question": "Is it?"},
    ),
    "The login of another program": Recipe([answer("Hello.")], ["Hello?"], "Hello."),
    "A tool of one's own": Recipe(
        [call("search", pattern="class (Journal|Tape)"), answer("In a.py.")],
        ["which file", "./a.py:2:class Journal:"],
        "In a.py.",
        files={"a.py": "# text\nclass Journal:\n"},
    ),
    "Search and code that run at the server, beside programs that run here": Recipe(
        [call("measure"), answer("No.")], ['"web_search"', "500 GB"], "No.", files={"measure": TOOL}
    ),
    "MCP servers": Recipe([answer("None.")], ['"authorization_token"'], "None."),
    "A conversation at the prompt": Recipe(
        [answer("Hello."), answer("Bye.")], ["-hi", "Hello."], "> Hello.\n> Bye.\n> ", typed="-hi\nbye\n"
    ),
    "A conversation in a Makefile": Recipe(
        [answer("1. Cats"), answer("Cats are")],
        ["All on cats", "1. Cats"],
        "streamcli -I -c talk.jsonl -o outline -f notes.txt 'Make an outline of these notes.'\n"
        "streamcli -I -c talk.jsonl -o draft 'Write the first section.'\n",
        left={"outline": "1. Cats", "draft": "Cats are"},
        files={"notes.txt": "All on cats"},
    ),
    NIGHT: Recipe(
        [busy_once("two")],
        ["", "", ""],
        "Yes.\nYes.\n",
        files={"questions.txt": "one\ntwo\n"},
    ),
    "Many prompts for several machines": Recipe([answer("Yes.")], ["", ""], files={"questions.txt": "one\ntwo\n"}),
    "A script tested without a network": Recipe(
        [answer("MIT.")],
        ["Permission"],
        "MIT.So it is MIT.\n",
        files={"LICENSE": "Permission is granted", "script": '#!/bin/sh\necho "So it is $(streamcli)"\n'},
    ),
}
STAND_INS = {
    "wl-paste": '#!/bin/sh\n[ "$*" = "-t image/png" ] && cat "$HOME/clipboard"\n',
    "glow": '#!/bin/sh\n[ "$*" = - ] && printf "rendered: " && cat\n',
    "ssh": '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; SHELL=/bin/sh exec sh -c "$*"\n',
    "ant": '#!/bin/sh\n[ "$*" = "auth print-credentials --access-token" ] && echo secret\n',
}
IN_A_REPOSITORY = """git init -q .; git add a; git commit -qm one; echo two >> a; git add a
{}git log -1 --format=%B | sed '/^$/d' > log
"""
CONFIG = '[profile.box]\nmodel = "qwen"\n'


def script(title):
    """The commands of a recipe, prompts taken away."""
    section = re.search(rf"^\.Ss {re.escape(title)}\n(.*?)(?=^\.S[hs] |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    block = re.search(r"^\.Bd -literal.*?\n(.*?)^\.Ed", section, re.MULTILINE | re.DOTALL)[1]
    lines = block.replace(r"\e", "\\").splitlines()
    assert all(line.startswith(("$ ", "> ")) for line in lines)
    return "".join(line[2:] + "\n" for line in lines)


def test_each_recipe_of_the_page_is_run_here():
    assert list(RECIPES) == re.findall(r"^\.Ss (.*)", PAGE, re.MULTILINE)


def run(commands, recipe, tmp_path, url):
    """What a shell makes of the commands in a new home and a folder with the recipe's files, and that folder."""
    needed = re.findall(r"(?<!\.)\b(?:jq|git|make|parallel)\b", commands)
    if missing := [name for name in needed if not shutil.which(name)]:
        pytest.skip(f"{missing[0]} is not installed")
    home, folder = tmp_path / "home", tmp_path / "folder"
    for path in (home / ".config" / "streamcli", home / "bin", folder):
        path.mkdir(parents=True)
    (home / "clipboard").write_bytes(PNG)
    (home / ".config" / "streamcli" / "config.toml").write_text(CONFIG)
    programs = {home / "bin" / name: text for name, text in STAND_INS.items()}
    for path, content in (programs | {folder / name: content for name, content in recipe.files.items()}).items():
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o755)
    environment = {
        "HOME": str(home),
        "PATH": f"{home}/bin:{starter.folder()}:{os.environ['PATH']}",
        "ANTHROPIC_BASE_URL": url,
        **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    ran = subprocess.run(
        ["sh", "-c", commands],
        input=recipe.typed.encode(),
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return ran, folder


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs_as_it_stands(title, tmp_path):
    recipe, commands = RECIPES[title], script(title)
    if "git commit" in commands:
        commands = IN_A_REPOSITORY.format(commands.replace("git commit -F", "git commit -q -F"))
    with Server(*recipe.responses) as server:
        ran, folder = run(commands, recipe, tmp_path, server.url)
        asked = [json.dumps(request.json) for request in server.requests]
    assert (ran.stdout.decode(), len(asked)) == (recipe.printed, len(recipe.asked)), ran.stderr.decode()
    assert all(text in body for text, body in zip(recipe.asked, asked, strict=True))
    assert {name: (folder / name).read_text() for name in recipe.left} == recipe.left


def test_the_prompts_by_night_go_by_the_message_batches_api_with_offload(tmp_path):
    commands = script(NIGHT).replace("--resume", "--resume --offload")
    with BatchesServer(polls=1) as server:
        ran, _ = run(commands, RECIPES[NIGHT], tmp_path, server.url)
    assert (ran.stdout.decode(), len(server.accepted)) == ("re: one\nre: two\n", 2), ran.stderr.decode()


def test_the_recipes_of_the_readme_are_ten_of_the_page():
    section = README.partition("\n## Recipes\n")[2].partition("\n## ")[0]
    shown = dict(re.findall(r"^\*\*(.+?)\.\*\*.*?^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    assert len(shown) == 10
    assert shown == {title: script(title) for title in shown}
