"""Every module opens with its contract, and every public class and callable says what it is."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streamcli"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def undescribed(node, name):
    """The names of the public definitions below `node` that have no docstring."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            if not ast.get_docstring(child):
                yield f"{name}.{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from undescribed(child, f"{name}.{child.name}")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_and_all_that_is_public_in_it_are_described(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert list(undescribed(tree, path.stem)) == []


# The tree and the mending of JSON say in their first lines all that there is to say.
CONTRACTS = [path for path in MODULES if path.stem not in {"__init__", "errors", "jsontext", "version"}]


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_a_module_opens_with_its_contract(path):
    assert "\nContract: " in path.read_text().partition('"""\n\nfrom')[0]
