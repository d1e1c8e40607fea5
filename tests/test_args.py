"""streamcli.cli.args: the command line and the environment, as asked."""

import contextlib
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.cli.args import OPTIONS, OUTPUT_FORMATS, Args, parse
from streamcli.cli.settings import Place
from streamcli.errors import UsageError
from streamcli.protocol import request, sse

WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))


def rejected(*argv):
    with pytest.raises(UsageError) as raised:
        parse(list(argv))
    return raised.value.message


class TestPrompt:
    @given(WORDS)
    def test_what_follows_two_dashes_is_the_prompt(self, words):
        assert parse(["--", *words]).prompt == tuple(words)

    @given(WORDS.map(lambda words: [word for word in words if not word.startswith("-")]))
    def test_no_word_has_a_meaning(self, words):
        asked = parse(words)
        assert asked.prompt == tuple(words)
        assert asked._replace(prompt=()) == parse([])

    def test_no_variable_is_a_prompt(self, monkeypatch):
        monkeypatch.setenv("STREAMCLI_PROMPT", "hi")
        assert parse([]).prompt == ()


class TestOutputFormats:
    def test_without_one_it_is_text(self):
        assert parse(["hi"]).output_format == "text"

    @pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
    def test_each_has_its_option(self, output_format):
        assert parse([f"--{output_format}", "hi"]).output_format == output_format

    def test_json_is_message(self):
        assert parse(["--json"]).output_format == parse(["--json", "--message"]).output_format == "message"

    @pytest.mark.parametrize("pair", list(itertools.combinations(OUTPUT_FORMATS, 2)), ids=" ".join)
    def test_two_exclude_each_other_in_any_order(self, pair):
        for one, other in itertools.permutations(pair):
            assert rejected(f"--{one}", f"--{other}") == f"--{pair[0]} and --{pair[1]} cannot be used together"


class TestLocal:
    @pytest.mark.parametrize(
        ("argv", "local", "prompt"),
        [
            ([], None, ()),
            (["--local"], "", ()),
            (["--local", "hi"], "", ("hi",)),
            (["--local", "--events", "hi"], "", ("hi",)),
            (["--local", "model.gguf", "hi"], "model.gguf", ("hi",)),
            (["--local", "models/M.GGUF"], "models/M.GGUF", ()),
            (["--local=any name", "hi"], "any name", ("hi",)),
            (["hi", "--local"], "", ("hi",)),
            (["--", "--local", "model.gguf"], None, ("--local", "model.gguf")),
        ],
    )
    def test_it_takes_a_value_only_where_that_names_a_model(self, argv, local, prompt):
        asked = parse(argv)
        assert (asked.local, asked.prompt) == (local, prompt)

    @pytest.mark.parametrize(
        ("value", "local"),
        [("1", ""), ("True", ""), ("yes ", ""), ("0", None), (" ", None), ("m.gguf", "m.gguf")],
    )
    def test_its_variable_can_say_only_that_it_is_wanted(self, monkeypatch, value, local):
        monkeypatch.setenv("STREAMCLI_LOCAL", value)
        asked = parse(["hi"])
        assert (asked.local, asked.place("local") == Place.VARIABLE) == (local, local is not None)


class TestCache:
    @pytest.mark.parametrize(
        ("argv", "cache", "prompt"),
        [
            ([], None, ()),
            (["--cache"], "5m", ()),
            (["--cache", "my prompt"], "5m", ("my prompt",)),
            (["--cache", "1h"], "5m", ("1h",)),
            (["--cache=1h", "hi"], "1h", ("hi",)),
            (["--cache=5m", "hi"], "5m", ("hi",)),
            (["hi", "--cache"], "5m", ("hi",)),
            (["--", "--cache"], None, ("--cache",)),
        ],
    )
    def test_the_next_word_is_never_its_value(self, argv, cache, prompt):
        asked = parse(argv)
        assert (asked.cache, asked.prompt) == (cache, prompt)


class TestNumbers:
    @pytest.mark.parametrize(
        ("option", "text", "value"),
        [
            ("--max-tokens", "0", 0),
            ("--max-tokens", "9223372036854775807", 2**63 - 1),
            ("--temperature", "0", 0.0),
            ("--temperature", "1e-3", 0.001),
            ("--timeout", ".5", 0.5),
            ("--retries", "7", 7),
        ],
    )
    def test_a_number_is_taken(self, option, text, value):
        number = getattr(parse([option, text]), option[2:].replace("-", "_"))
        assert (number, type(number)) == (value, type(value))

    @pytest.mark.parametrize(
        ("option", "text"),
        [
            ("--max-tokens", "-1"),
            ("--max-tokens", "9223372036854775808"),
            ("--temperature", "-0.1"),
            ("--timeout", "1e7"),
        ],
    )
    def test_one_that_makes_no_sense_is_out_of_range(self, option, text):
        assert rejected(option, text).startswith(f"invalid value for '{option}': {text!r} is out of range: it must be")

    @pytest.mark.parametrize(
        ("option", "text"),
        [
            ("--top-k", "1.0"),
            ("--retries", ""),
            ("--timeout", "1s"),
            ("--top-p", "nan"),
            ("--temperature", "inf"),
            ("--idle-timeout", "-inf"),
            ("--connect-timeout", "1e999"),
        ],
    )
    def test_anything_else_is_rejected(self, option, text):
        assert f"{text!r} is not a " in rejected(option, text)

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_any_text_is_a_number_or_rejected(self, text):
        for option in ("--max-tokens", "--timeout"):
            with contextlib.suppress(UsageError):
                assert isinstance(parse([f"{option}={text}"]), Args)


class TestEnvironment:
    @pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
    def test_every_option_has_a_variable(self, option, monkeypatch, tmp_path):
        alone = parse([])
        text = {"number": "7", "boolean": "1", "choice": "bearer", "thinking": "off"}.get(option.type.name, "text")
        by_name = {
            "error_format": "json",
            "sanitize": "always",
            "config": os.devnull,
            "cache": "1h",
            "retry_errors": "0",
        }
        value = by_name.get(option.name, text)
        if option.name == "profile":
            (tmp_path / "config.toml").write_text("[profile.text]")
            monkeypatch.setenv("STREAMCLI_CONFIG", str(tmp_path / "config.toml"))
        monkeypatch.setenv(f"STREAMCLI_{option.name.upper()}", value)
        assert parse([]) != alone

    def test_an_empty_one_is_unset(self, monkeypatch):
        alone = parse([])
        for option in OPTIONS:
            monkeypatch.setenv(f"STREAMCLI_{option.name.upper()}", "")
            assert parse([]) == alone, option.name

    @pytest.mark.parametrize(
        "option", [option for option in OPTIONS if option.multiple], ids=lambda option: option.name
    )
    def test_several_values_are_one_a_line(self, option, monkeypatch):
        monkeypatch.setenv(f"STREAMCLI_{option.name.upper()}", "the end\n\n b \n")
        assert getattr(parse([]), option.name) == ("the end", " b ")

    def test_the_command_line_wins(self, monkeypatch):
        monkeypatch.setenv("STREAMCLI_MODEL", "ambient")
        monkeypatch.setenv("STREAMCLI_STOP", "ambient")
        asked = parse(["-m", "typed", "--stop", "typed"])
        assert (asked.model, asked.stop) == ("typed", ("typed",))

    def test_it_wins_over_what_it_excludes_too(self, monkeypatch):
        monkeypatch.setenv("STREAMCLI_BASE_URL", "http://ambient")
        asked = parse(["--local", "hi"])
        assert (asked.local, asked.base_url) == ("", None)

    def test_variables_that_exclude_each_other_are_rejected(self, monkeypatch):
        monkeypatch.setenv("STREAMCLI_SYSTEM", "a")
        monkeypatch.setenv("STREAMCLI_SYSTEM_FILE", "b")
        assert rejected() == "--system and --system-file cannot be used together"


class TestFailOn:
    @pytest.mark.parametrize("text", ["refusal,max_tokens", " max_tokens , refusal ", "refusal,,max_tokens,"])
    def test_it_is_a_list_of_reasons(self, text):
        assert parse(["--fail-on", text]).fail_on == {"refusal", "max_tokens"}


@pytest.mark.parametrize("option", [option for option in OPTIONS if "[default: " in option.help], ids=lambda o: o.name)
def test_the_default_that_help_names_is_the_default(option):
    elsewhere = {
        "model": request.DEFAULT_MODEL,
        "base_url": request.DEFAULT_BASE_URL,
        "max_tokens": f"{request.ANTHROPIC_MAX_TOKENS}, elsewhere {request.DEFAULT_MAX_TOKENS}",
        "timeout": "none",
        "retry_errors": "yes",
        "max_event_bytes": f"{sse.MAX_EVENT_BYTES >> 20} MiB",
    }
    assert option.help.endswith(f"[default: {elsewhere.get(option.name, option.default)}]")


def test_every_default_that_is_one_is_named():
    own = [option for option in OPTIONS if option.default and isinstance(option.default, int | float | str)]
    silent = {option.name for option in own if "[default: " not in option.help}
    assert silent == {"error_format"}
