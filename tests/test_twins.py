"""The asynchronous half of the library is the synchronous one with `async` and `await`, and nothing else."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streamcli"
CLIENT = (PACKAGE / "client" / "client.py").read_text()
TRANSPORT = ast.parse((PACKAGE / "network" / "transport.py").read_text())

COLOURS = [
    (r"\bAsyncByteStream\b", "SyncByteStream"),
    (r"\bAsyncBaseTransport\b", "BaseTransport"),
    (r"\b(async|await) ", ""),
    (r"\b(_?)(Async|async_)(?=\w)", r"\1"),
    (r"\b(handle)_async_", r"\1_"),
    (r"\b(__|)a(iter|next|enter|exit|close|closing)\b", r"\1\2"),
    (r"\b(__)a(iter|next|enter|exit)(__)", r"\1\2\3"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\basync_connection\b", "connection"),
]


def uncoloured(source):
    for pattern, replacement in COLOURS:
        source = re.sub(pattern, replacement, source)
    return source


class _Shape(ast.NodeTransformer):
    """What is left aside where formatting or a linter forces a difference: one `with` in another is one of two."""

    def visit_With(self, node):
        self.generic_visit(node)
        while len(node.body) == 1 and isinstance(node.body[0], ast.With):
            node.items += node.body[0].items
            node.body = node.body[0].body
        return node


def shape(source):
    return ast.unparse(_Shape().visit(ast.parse(source)))


def test_the_asynchronous_half_of_the_client_is_the_synchronous_one():
    _, synchronous, asynchronous = re.split(r"^# The (?:a)?synchronous half.*$", CLIENT, flags=re.MULTILINE)
    assert "await " in asynchronous
    assert shape(uncoloured(asynchronous)) == shape(synchronous)


def test_the_asynchronous_half_has_every_definition_in_the_same_order():
    names = re.findall(r"^(?:class|def|async def) (\w+)", CLIENT.partition("# The synchronous half")[2], re.MULTILINE)
    half = len(names) // 2
    assert [uncoloured(name) for name in names[half:]] == names[:half]


def defined(name):
    [node] = [node for node in TRANSPORT.body if getattr(node, "name", "") == name]
    if isinstance(node.body[0], ast.Expr):
        node.body.pop(0)  # the docstring of the asynchronous one refers to the other
    return ast.unparse(node)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("Transport", "AsyncTransport"),
        ("_Body", "_AsyncBody"),
        ("whole_body", "async_whole_body"),
        ("error_body", "async_error_body"),
    ],
)
def test_what_the_client_stands_on_has_the_same_twins(name, twin):
    assert shape(uncoloured(defined(twin))) == shape(defined(name))
