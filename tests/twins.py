"""The asynchronous modules in, the synchronous ones out: `make twins` writes them, tests/test_twins.py checks them.

Every `async_*.py` of the package is a source, but for the wire, whose halves truly differ. What makes a module
synchronous is the table of rules and nothing else; ruff sorts and formats what comes out.
"""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "streamcli"
SOURCES = sorted(path for path in PACKAGE.rglob("async_*.py") if path.name != "async_wire.py")

HEADER = "# Made from {} by tests/twins.py: edit that one and run `make twins`.\n"
# Applied one after another, each to all of the text.
RULES = (
    # Where the word is not just left out.
    (r"\bfrom asyncio import sleep\b", "from time import sleep"),
    (r"\bAsyncByteStream\b", "SyncByteStream"),
    (r"\bAsyncGenerator\[bytes, None\]", "Generator[bytes, None, None]"),
    # The language.
    (r"\b(?:async|await) ", ""),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\b__a(enter|exit|iter|next)__", r"__\1__"),
    (r"\ba(close|closing|iter|iter_raw|next|read)\b", r"\1"),
    # Names, and what is said of them.
    (r"\b(_?)Async(?=[A-Z])", r"\1"),
    (r"\basync_(?=\w)", ""),
    (r"\bhandle_async_request\b", "handle_request"),
    (r"\b([Aa])n asynchronous\b", r"\1 synchronous"),
    (r"\b[Aa]synchronous\b", lambda found: "Synchronous" if found[0][0] == "A" else "synchronous"),
)


def twin(source):
    """Where that module goes."""
    return source.with_name(source.name.removeprefix("async_"))


def synchronous(text, rules=RULES):
    """`text` by the rules."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def made(source):
    """The text of the module that is made from `source`."""
    text = synchronous(source.read_text())
    for tidy in (["check", "--quiet", "--fix", "--select", "I"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *tidy, "--stdin-filename", twin(source), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return HEADER.format(source.name) + text


if __name__ == "__main__":
    for source in SOURCES:
        twin(source).write_text(made(source))
