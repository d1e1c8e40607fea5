"""streamcli.output.sources: a line for each part of each source, whatever a server sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.output.sources import citations, source_lines

DOCUMENT = {"type": "char_location", "cited_text": "x", "document_index": 0, "document_title": "a.txt"}
ANY = (
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text())
)
KEYS = st.sampled_from(
    ["type", "title", "document_title", "url", "source", "file_id", "document_index", "search_result_index"]
    + [f"{end}_{what}" for end in ("start", "end") for what in ("char_index", "page_number", "block_index")]
)


@pytest.mark.parametrize(
    ("citation", "line"),
    [
        (DOCUMENT | {"start_char_index": 0, "end_char_index": 52}, "a.txt (document 0), characters 0-52"),
        (DOCUMENT | {"start_page_number": 3, "end_page_number": 4}, "a.txt (document 0), pages 3-4"),
        (DOCUMENT | {"start_block_index": 1, "end_block_index": 2}, "a.txt (document 0), blocks 1-2"),
        (DOCUMENT | {"document_title": None, "file_id": "file_1"}, "document 0, file_1"),
        (
            {"type": "search_result_location", "source": "kb/7", "title": "How", "search_result_index": 2}
            | {"start_block_index": 0, "end_block_index": 1},
            "How (search result 2), kb/7, blocks 0-1",
        ),
        ({"type": "web_search_result_location", "title": "Paris", "url": "https://a"}, "Paris, https://a"),
        ({"type": "web_search_result_location", "title": None, "url": "https://a"}, "https://a"),
        (DOCUMENT | {"document_title": " ", "start_page_number": "3", "end_page_number": 4}, "document 0"),
        ({"type": "new"}, "new"),
        ({}, "unknown"),
    ],
)
def test_a_source_is_named_with_what_is_known_of_it(citation, line):
    assert source_lines([citation]) == [f"[1] {line}"]


def test_a_part_is_named_once_and_documents_of_one_name_are_two():
    first, second = DOCUMENT, DOCUMENT | {"document_index": 1}
    cited = [second, first, second | {"cited_text": "y"}]
    assert source_lines(cited) == ["[1] a.txt (document 1)", "[2] a.txt (document 0)"]


@given(st.lists(st.dictionaries(KEYS, ANY)))
def test_whatever_is_sent_as_a_citation_has_a_line(cited):
    assert bool(source_lines(cited)) == bool(cited)


@pytest.mark.parametrize(
    "block",
    [{"type": "text"}, {"type": "text", "citations": None}, {"type": "document", "citations": {"enabled": True}}],
)
def test_a_block_may_have_none(block):
    assert citations({"content": [block, {"type": "text", "citations": [DOCUMENT, None]}]}) == [DOCUMENT]
    assert citations({}) == []
