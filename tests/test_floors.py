"""The storeys of the house: data moves one way, a module imports only from below, and only `network` knows sockets."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "streamcli"

# From the ground; those on one line know nothing of each other.
STOREYS = [
    {"version", "errors"},
    {"protocol"},
    {"network", "output", "turns"},
    {"client"},
    {"batch"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: number for number, names in enumerate(STOREYS) for name in names}
# What a storey's modules may import of the outside world, beside what needs neither file, socket nor process.
DO_NO_IO = {"protocol", "output"}
ALSO_DO_NO_IO = {
    "cli/verdict.py",
    "turns/tool_loop.py",
    "turns/attachment.py",
    "batch/limiter.py",
    "batch/source.py",
    "client/calls.py",
    "network/framing.py",
}
IO = {"asyncio", "os", "io", "socket", "ssl", "threading", "subprocess", "pathlib", "tempfile", "select"}
# Above the network, httpx is only named: for the types of what a caller hands in, and its timeouts.
NAME_HTTPX = {"network", "client", "cli"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name(path):
    return str(path.relative_to(PACKAGE))


def storey(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@functools.cache
def imported(path):
    """Every module that a file imports, wherever in it, by its full name; a name that is no module is its module's."""
    return set(_imported(path))


def _imported(path):
    package = ["streamcli", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            folder = PACKAGE.parent.joinpath(*base.split("."))
            modules = [alias.name for alias in node.names if (folder / f"{alias.name}.py").exists()]
            yield from ([f"{base}.{module}" for module in modules] or [base])


def imported_of_ours(path):
    return {full.removeprefix("streamcli.") for full in imported(path) if full.startswith("streamcli.")}


def tops(path):
    return {full.partition(".")[0] for full in imported(path)}


def test_every_module_stands_on_a_storey():
    assert {storey(path) for path in MODULES} == HEIGHT.keys()


def test_a_module_imports_only_from_its_own_storey_and_those_below():
    arrows = {
        (name(path), storey(path), module.partition(".")[0]) for path in MODULES for module in imported_of_ours(path)
    }
    assert {arrow for arrow in arrows if arrow[1] != arrow[2] and HEIGHT[arrow[2]] >= HEIGHT[arrow[1]]} == set()
    assert [name(path) for path in MODULES if "streamcli" in imported(path)] == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {name(path).removesuffix(".py").replace("/", "."): imported_of_ours(path) for path in MODULES}
    assert list(TopologicalSorter(graph).static_order())


def test_a_storey_opens_with_what_it_is_for_and_holds_no_code_there():
    for path in MODULES:
        if path.name == "__init__.py":
            [text] = ast.parse(path.read_text()).body
            assert isinstance(text.value.value, str), path


def test_only_the_network_speaks_through_httpx():
    users = {(storey(path), top) for path in MODULES for top in tops(path) & {"httpx", "httpcore", "h11"}}
    assert {name for name, _ in users} <= NAME_HTTPX
    assert {name for name, top in users if top != "httpx"} == {"network"}


def test_what_is_said_to_do_no_input_or_output_cannot():
    silent = [path for path in MODULES if storey(path) in DO_NO_IO or name(path) in ALSO_DO_NO_IO]
    assert {name(path) for path in silent} >= ALSO_DO_NO_IO
    assert [name(path) for path in silent if tops(path) & IO] == []
