"""Every module opens with its contract, and every public class and callable says what it is."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "streamcli"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def undescribed(node, name):
    """The names of the public definitions below `node`, and its own, that have no docstring."""
    if not ast.get_docstring(node):
        yield name
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from undescribed(child, f"{name}.{child.name}")
            elif not ast.get_docstring(child):
                yield f"{name}.{child.name}"


def test_a_module_and_all_that_is_public_in_it_are_described():
    assert [name for path in MODULES for name in undescribed(ast.parse(path.read_text()), path.stem)] == []


# These say in their first lines all that there is to say.
WITHOUT_CONTRACT = {"__init__", "errors", "version"}


def test_a_module_opens_with_its_contract():
    heads = {path: path.read_text().partition('"""\n\nfrom')[0] for path in MODULES}
    assert {path.stem for path, head in heads.items() if "\nContract: " not in head} == WITHOUT_CONTRACT
