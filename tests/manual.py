"""The pages of man/ as the tests read them: their sections, and in those the lists, tables and examples."""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "man"
NUMBERS = sorted(int(path.suffix[1:]) for path in FOLDER.glob("streamcli.*"))
PAGES = {number: (FOLDER / f"streamcli.{number}").read_text() for number in NUMBERS}


def sections(number):
    """The source of each section and subsection by its title, up to the next one."""
    _, *parts = re.split(r"^\.S[hs] (.*)$", PAGES[number], flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def items(number, title):
    """What a section's lists explain: the words after `.It Li`, without the macros between them."""
    entries = re.findall(r"^\.It Li (.*)$", sections(number)[title], re.MULTILINE)
    return [word for entry in entries for word in re.sub(r" (?:No|Pq) .*", "", entry).split() if word != ","]


def terms(number, title):
    """The entries of a section's lists that are plain words."""
    return re.findall(r"^\.It (?!Li |Fl |Ev )(\S.*)$", sections(number)[title], re.MULTILINE)


def entries(number, title):
    """The tags of a section's list, each with the source below it."""
    _, *parts = re.split(r"^\.It (.*)$", sections(number)[title], flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def bare_items(number, title):
    """The entries of a section's lists without tags: the word that begins each."""
    return re.findall(r"^\.It\n\.Li (\S+)", sections(number)[title], re.MULTILINE)


def rows(number, title):
    """The cells of a section's tables, as text; headings are left out."""
    lines = re.findall(r"^\.It (.* Ta .*)$", sections(number)[title], re.MULTILINE)
    cells = [[re.sub(r"^Li |\\&", "", cell).strip() for cell in line.split(" Ta ")] for line in lines]
    return [row for row in cells if not row[0].startswith("Em ")]


def texts(number, title):
    """A section's examples as they are read, broken lines whole again."""
    blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", sections(number)[title], re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n *", "", block.replace(r"\e", "\\")) for block in blocks]


def values(number, title, place=0):
    """The JSON values of a section's example, a line each."""
    return [json.loads(line) for line in texts(number, title)[place].splitlines()]


def prose(number, title):
    """A section's words on one line, without the macros."""
    return " ".join(re.sub(r"^\.[A-Z][a-z] ?", "", sections(number)[title], flags=re.MULTILINE).split())
