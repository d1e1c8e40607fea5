"""streamcli.cli.resolve: what the options make of a request. Input and keys are in cli/input.txt and cli/keys.txt."""

import json
import os
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamcli.cli import io, resolve
from streamcli.cli.args import parse
from streamcli.errors import UsageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
NAME = st.text(st.characters(exclude_characters=".=", exclude_categories=["Cs"]), min_size=1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


WITHOUT_STDIN = (False, True, True)


def body(*argv):
    args = parse(list(argv))
    prompt = resolve.composer(args)(resolve.text_of_stdin(args, WITHOUT_STDIN, io.Diagnostics()))
    fields = resolve.fields(args)
    return resolve.body(args, fields, [*fields.get("messages", ()), *([prompt] if prompt else ())])


class TestSet:
    @given(JSON)
    def test_any_json_is_taken_as_it_is(self, value):
        assert body("--set", f"field={json.dumps(value, ensure_ascii=False)}", "hi")["field"] == value

    @given(TEXT)
    def test_anything_else_is_text(self, text):
        try:
            json.loads(text)
        except ValueError:
            assert body("--set", f"field={text}", "hi")["field"] == text
        else:
            assume(False)

    @given(st.lists(NAME, min_size=2, max_size=5))
    def test_a_dotted_key_reaches_as_deep_as_it_says(self, names):
        assume(names[0] not in {"model", "max_tokens", "messages", "stream"})
        assume(not any(name.isdecimal() for name in names))
        value = body("--set", f"{'.'.join(names)}=1", "hi")
        for name in names:
            value = value[name]
        assert value == 1

    def test_two_keys_with_one_parent_meet(self):
        assert body("--set", "a.b=1", "--set", "a.c=2", "hi")["a"] == {"b": 1, "c": 2}

    def test_the_last_one_wins(self):
        assert body("--set", "a=1", "--set", "a=2", "hi")["a"] == 2

    @pytest.mark.parametrize("setting", ["a", "=1", ".a=1", "a.=1", "a..b=1"])
    def test_a_key_needs_a_name_and_a_value(self, setting):
        with pytest.raises(UsageError, match="needs the form KEY=VALUE"):
            body("--set", setting, "hi")

    @pytest.mark.parametrize("key", ["model.a", "messages.0.role.a", "stream.0.b"])
    def test_only_objects_and_lists_have_something_inside(self, key):
        with pytest.raises(UsageError, match="is neither an object nor a list"):
            body("--set", f"{key}=1", "hi")


class TestBody:
    def from_file(self, tmp_path, fields, *argv):
        (tmp_path / "request.json").write_text(json.dumps(fields))
        return body("--body", str(tmp_path / "request.json"), *argv)

    def test_it_goes_as_it_is(self, tmp_path):
        fields = {"stream": True, "vendor": {"n": 2**70, "f": 1.5, "null": None}, "model": "m", "max_tokens": 1}
        fields["messages"] = [{"role": "user", "content": [{"type": "text", "text": "é"}]}]
        assert self.from_file(tmp_path, fields) == fields

    @pytest.mark.parametrize(
        ("argv", "name", "value"),
        [
            (["-m", "two"], "model", "two"),
            (["--max-tokens", "0"], "max_tokens", 0),
            (["--temperature", "0"], "temperature", 0),
            (["--top-p", "0.5"], "top_p", 0.5),
            (["--top-k", "5"], "top_k", 5),
            (["-s", ""], "system", ""),
            (["--stop", "b", "--stop", "c"], "stop_sequences", ["b", "c"]),
            (["--set", "system=two", "-s", "three"], "system", "two"),
        ],
    )
    def test_an_option_goes_over_its_field_and_leaves_the_others(self, tmp_path, argv, name, value):
        fields = {
            "model": "one", "max_tokens": 1, "temperature": 1, "top_p": 1, "top_k": 1, "system": "one",
            "stop_sequences": ["a"], "messages": [{"role": "user", "content": "hi"}], "stream": True,
        }  # fmt: skip
        assert self.from_file(tmp_path, fields, *argv) == fields | {name: value}

    @pytest.mark.parametrize("text", ["", "null", "[]", '"a"', "{", '{"a": NaN}', '{"messages": null}', "[" * 5000])
    def test_what_is_not_a_request_is_rejected(self, tmp_path, text):
        (tmp_path / "request.json").write_text(text)
        with pytest.raises(UsageError, match=r"^--body .* is not (a )?JSON"):
            body("--body", str(tmp_path / "request.json"), "hi")


class TestPrompt:
    @given(st.lists(TEXT.filter(lambda text: text != "-" and text.strip()), min_size=1))
    def test_words_are_joined_by_a_blank(self, words):
        assert body("--", *words)["messages"] == [{"role": "user", "content": " ".join(words)}]

    @given(parts=st.lists(TEXT.filter(lambda text: text.strip("\ufeff \n\r")), max_size=4))
    def test_between_parts_is_one_blank_line_and_the_line_end_before_it_does_not_count(self, parts, tmp_path_factory):
        folder = tmp_path_factory.mktemp("files")
        for number, part in enumerate(parts):
            (folder / str(number)).write_bytes(part.encode())
        options = [word for number in range(len(parts)) for word in ("-f", str(folder / str(number)))]
        texts = [re.sub(r"(\r\n|\n|\r)\Z", "", part.removeprefix("\ufeff")) for part in parts]
        assert body(*options, "end")["messages"] == [{"role": "user", "content": "\n\n".join([*texts, "end"])}]

    @pytest.mark.parametrize("argv", [[], [""], ["", " "], ["-"], ["\t\n"]])
    def test_blank_is_not_a_prompt(self, argv):
        with pytest.raises(UsageError, match=r"^no prompt"):
            body(*argv)


class TestEndpoint:
    def headers(self, *argv):
        return resolve.endpoint(parse(list(argv))).request("POST", "/v1/messages", {}).headers

    def test_a_header_of_the_command_line_goes_over_one_of_the_environment(self, monkeypatch):
        monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://localhost")
        monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-A: 1\nX-B: 2\n")
        headers = self.headers("-H", "x-b: 3")
        assert (headers["x-a"], headers["x-b"]) == ("1", "3")

    def test_a_local_server_gets_no_key(self, monkeypatch):
        monkeypatch.setitem(os.environ, "ANTHROPIC_API_KEY", "sk-1")
        endpoint = resolve.endpoint(parse(["--local"]))
        assert "sk-1" not in str(endpoint.request("POST", "/v1/messages", {}).headers)
