"""Data moves one way: a module imports only from lower floors, and only the transport's know httpx."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streamcli"

FLOORS = [
    {"__init__", "errors", "jsontext"},
    {"sse", "message", "request", "retry", "framing", "attachment", "prose", "limiter"},
    {"records", "network"},
    {"exchange", "asyncnetwork"},
    {"transport", "tape", "local", "journal", "processes"},
    {"client"},
    {"terminal", "conversation", "tools"},
    {"output"},
    {"turn", "batch"},
    {"pool", "offload"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
KNOW_HTTPX = {"network", "asyncnetwork", "transport", "tape"}
TAKE_ITS_TIMEOUT = {"client", "cli"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def home(path):
    """The name that stands for a module in the table: its own, or its package's."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """Every module that a file imports, wherever in it, by its full name."""
    package = ["streamcli", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (
                (f"{base}.{alias.name}" for alias in node.names) if base in {"streamcli", "streamcli.cli"} else [base]
            )


def neighbours(path):
    """The table's names of what a file imports from the package; a name that is no module is from `__init__`."""
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "streamcli":
            first = rest.partition(".")[0]
            yield first if first in FLOOR else "__init__"


def test_every_module_has_its_floor():
    assert {home(path) for path in MODULES} <= FLOOR.keys()


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=lambda path: path.stem)
def test_a_module_imports_only_from_lower_floors(path):
    own = home(path)
    upward = {name for name in neighbours(path) if FLOOR[name] >= FLOOR[own] and not name == own == "cli"}
    assert upward == set()


def test_only_the_transport_knows_httpx():
    users = {
        home(path) for path in MODULES for name in imported(path) if name.partition(".")[0] in {"httpx", "httpcore"}
    }
    assert users <= KNOW_HTTPX | TAKE_ITS_TIMEOUT


@pytest.mark.parametrize("name", sorted(FLOORS[1] | {"exchange", "records", "turn"} | FLOORS[0] - {"__init__"}))
def test_the_lower_floors_do_no_input_or_output(name):
    tops = {imported_name.partition(".")[0] for imported_name in imported(PACKAGE / f"{name}.py")}
    assert not tops & {"asyncio", "os", "io", "socket", "ssl", "sys", "threading", "subprocess", "pathlib"}
