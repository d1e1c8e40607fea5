"""What the repository cites is there to be read: its own files, sections of its manual, sections of public standards.

A section of the manual is cited as `streamcli(7), section "RETRIES"` is here; one of a Markdown file likewise, with the
file's name.
"""

import functools
import re
from pathlib import Path

import manual
import pytest

from streamcli.cli.args import command

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(ROOT.glob("*.md"))
PROGRAMS = sorted(path for folder in ("streamcli", "tests") for path in (ROOT / folder).rglob("*.py"))
OTHERS = [ROOT / "Makefile", ROOT / "pyproject.toml", *sorted((ROOT / "tests" / "cli").glob("*.txt"))]
PAGES = [manual.FOLDER / f"streamcli.{number}" for number in manual.PAGES]
# What is about whole pages.
ABOUT_PAGES = {"tests/test_man.py", "tests/test_citations.py"}

FILE = re.compile(r"(?<![\w./~$-])(?:(?:tests|streamcli|\.ci)/[\w./*-]*\.[a-z]\w*|man/[\w.-]+)|[\w./-]+\.md\b")
TEST = re.compile(r"(?<![\w/])test_\w+\.py\b")
OF_THE_MANUAL = re.compile(r'streamcli\((\d)\), section "([^"]*)"')
OF_A_DOCUMENT = re.compile(r'([\w-]+\.md), section "([^"]*)"')


@functools.cache
def words(path):
    """What there is to read in a file, broken lines whole again: all of it, or a program's comments and docstrings."""
    text = said(path.read_text()) if path.suffix == ".py" else path.read_text()
    return " ".join(text.split())


def said(program):
    """Its comments and docstrings, and what looks like one."""
    return "\n".join(re.findall(r'(?:^|\s)#+ .*|"""(?s:.*?)"""', program))


def wrong(paths, find):
    """What `find` finds in the words of files, each with the file's name."""
    return [f"{path.relative_to(ROOT)}: {citation}" for path in paths for citation in find(words(path))]


def lost_sections(text):
    """Of the sections that a text cites, those that do not exist."""
    for page, title in OF_THE_MANUAL.findall(text):
        if int(page) not in manual.PAGES or title not in manual.sections(int(page)):
            yield f'streamcli({page}), section "{title}"'
    for name, title in OF_A_DOCUMENT.findall(text):
        if not (ROOT / name).exists() or f"# {title}\n" not in (ROOT / name).read_text():
            yield f'{name}, section "{title}"'


def lost_files(text):
    """Of the files that a text names, those that do not exist; what addresses name is not looked at."""
    text = re.sub(r"https?://\S+", "", text)
    yield from (name for name in FILE.findall(text) if not list(ROOT.glob(name)))
    yield from (name for name in TEST.findall(text) if not (ROOT / "tests" / name).exists())
    yield from (name for name in re.findall(r"\]\(([\w./-]+)\)", text) if not (ROOT / name).exists())


@pytest.mark.parametrize(
    ("find", "text"),
    [
        (lost_sections, 'streamcli(7), section "Nothing"'),
        (lost_sections, 'streamcli(3), section "NAME"'),
        (lost_sections, 'NOTHING.md, section "Tests"'),
        (lost_sections, 'README.md, section "Nothing"'),
        (lost_files, "as notes.md says"),
        (lost_files, "see tests/nothing.txt"),
        (lost_files, "test_nothing.py has more"),
        (lost_files, "[more](MORE)"),
    ],
)
def test_a_citation_that_leads_nowhere_is_found(find, text):
    assert len(list(find(text))) == 1


def test_a_section_that_is_cited_exists():
    assert wrong([*PROGRAMS, *DOCUMENTS, *OTHERS], lost_sections) == []


def test_a_file_that_is_cited_exists():
    assert wrong([*PROGRAMS, *DOCUMENTS, *OTHERS, *PAGES], lost_files) == []


def test_a_program_cites_the_manual_by_section():
    programs = [path for path in PROGRAMS if str(path.relative_to(ROOT)) not in ABOUT_PAGES]
    assert wrong(programs, re.compile(r'streamcli\(\d\)(?!, section ").{0,20}').findall) == []


def test_a_section_that_is_cited_by_number_is_of_a_public_standard():
    """The standard's name stands just before or after the number."""
    named = re.compile(r"RFC|WHATWG|whatwg")

    def unnamed(text):
        for number in re.finditer(r"\b(?:sections?|rows?) \d", text):
            place = text[max(0, number.start() - 60) : number.end() + 30]
            if not named.search(place):
                yield place

    assert wrong([*PROGRAMS, *DOCUMENTS, *OTHERS, *PAGES], unnamed) == []


@pytest.mark.parametrize("number", manual.PAGES)
def test_a_page_refers_to_pages_and_sections_that_exist(number):
    page = manual.PAGES[number]
    assert {int(other) for other in re.findall(r"^\.Xr streamcli (\d)", page, re.MULTILINE)} <= manual.PAGES.keys()
    title = r"(.*?)(?: [.,;:)]+)*$"
    cited = re.findall(rf"^\.Xr streamcli (\d) ,\nsection\n\.Dq {title}", page, re.MULTILINE)
    cited += [(number, other) for other in re.findall(rf"^\.Sx {title}", page, re.MULTILINE)]
    assert [(other, name) for other, name in cited if name not in manual.sections(int(other))] == []


def test_an_option_that_a_document_names_exists():
    known = {name for option in command().params for name in (*option.opts, *option.secondary_opts)}
    known |= {"--describe", "--help"}
    assert wrong(DOCUMENTS, lambda text: set(re.findall(r"`(--[a-z][a-z-]*)", text)) - known) == []
