"""The citations of an answer in, a line for each source out: what was cited, and which part of it.

Contract: a line for each part of each source, in the order in which the answer cites them first. Numbers are those of
the API, fields that are missing or of another type are left out, and a citation of an unknown kind has a line too.
Source: streamcli(5), section "Sources".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TITLES = ("title", "document_title")
_INDEXES = {"document_index": "document", "search_result_index": "search result"}
_ADDRESSES = ("url", "source", "file_id")
_PARTS = {
    "characters": ("start_char_index", "end_char_index"),
    "pages": ("start_page_number", "end_page_number"),
    "blocks": ("start_block_index", "end_block_index"),
}


def citations(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The citations in the content blocks of a message, in their order."""
    lists = [block.get("citations") for block in message.get("content") or ()]
    return [citation for cited in lists if isinstance(cited, list) for citation in cited if isinstance(citation, dict)]


def source_lines(cited: Iterable[Mapping[str, Any]]) -> list[str]:
    """`[1] TITLE (document 0), ADDRESS, pages 3-4` for each source and part of the citations, without a line end."""
    return [f"[{number}] {line}" for number, line in enumerate(dict.fromkeys(map(_source, cited)), 1)]


def _source(citation: Mapping[str, Any]) -> str:
    titles = [citation[key] for key in _TITLES if _is_text(citation.get(key))][:1]
    places = [f"{word} {citation[key]}" for key, word in _INDEXES.items() if type(citation.get(key)) is int]
    name = f"{titles[0]} ({places[0]})" if titles and places else "".join(titles or places[:1])
    addresses = [citation[key] for key in _ADDRESSES if _is_text(citation.get(key))]
    parts = [
        f"{what} {citation[start]}-{citation[end]}"
        for what, (start, end) in _PARTS.items()
        if type(citation.get(start)) is type(citation.get(end)) is int
    ]
    return ", ".join(filter(None, [name, *addresses, *parts])) or str(citation.get("type", "unknown"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
