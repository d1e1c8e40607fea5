"""A file's bytes, a URL or a file's id in, the content block that carries it out.

Contract: a file's kind is judged by its bytes and a URL's by its suffix; a kind that no block can carry is UsageError,
which says what can be attached. Bytes go out as they are. No I/O.
Source: streamcli(7), section "Attachments".
"""

from __future__ import annotations

import base64
import contextlib
import re
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamcli.errors import UsageError
from streamcli.protocol.userinput import decoded

if TYPE_CHECKING:
    from collections.abc import Mapping

# How files begin, as patterns.
_IMAGES = {
    rb"\x89PNG\r\n\x1a\n": "image/png",
    rb"\xff\xd8\xff": "image/jpeg",
    rb"GIF8[79]a": "image/gif",
    rb"RIFF.{4}WEBP": "image/webp",
}
# Kinds that cannot be sent are named, so that the user knows what to do with the file.
_OTHERS = {
    rb".{4}ftyp": "a HEIC, AVIF or video file",
    rb"PK\x03\x04": "a zip archive, such as .docx or .xlsx: save it as PDF or text",
    rb"\xd0\xcf\x11\xe0": "an old Office file: save it as PDF or text",
    rb"BM": "a BMP image: convert it to PNG",
    rb"II\*\0|MM\0\*": "a TIFF image: convert it to PNG",
    rb"\xff\xfe|\xfe\xff": "UTF-16: convert it to UTF-8",
}
_SUFFIXES = {".png": "image", ".jpg": "image", ".jpeg": "image", ".gif": "image", ".webp": "image", ".pdf": "document"}
_FILE_ID = re.compile(r"(?:([a-z]+):)?(file_[A-Za-z0-9]+)")
# What a file's id may go as: nothing here tells what kind of file the server has.
_KINDS = ("document", "image", "container")
_FITTING = "PNG, JPEG, GIF, WebP, PDF and UTF-8 text can be attached"


def of_bytes(data: bytes, source: str, title: str | None = None) -> dict[str, Any]:
    """The block of a file: image, or document with its `title`. `source` is what messages call it.

    Raises UsageError for a kind that cannot be attached, and for an empty file.
    """
    if not data.removeprefix(BOM_UTF8).strip():
        raise UsageError(f"{source} is empty")
    image = _kind(data, _IMAGES)
    if image:
        return {"type": "image", "source": _base64(image, data)}
    if data.startswith(b"%PDF-"):
        content = _base64("application/pdf", data)
    else:
        content = {"type": "text", "media_type": "text/plain", "data": _text(data, source)}
    return {"type": "document", "source": content} | ({"title": title} if title else {})


def by_reference(word: str) -> dict[str, Any] | None:
    """The block of an http(s) URL or a `[KIND:]file_…` id, or None for a word that is neither and so names a file.

    Raises UsageError for a URL whose suffix is not that of a kind the API fetches, for an id of an unknown kind, and
    for a kind in front of anything but an id.
    """
    match = _FILE_ID.fullmatch(word)
    if match:
        return _of_id(match[1] or "document", match[2])
    if word.startswith(tuple(f"{kind}:" for kind in _KINDS)):
        raise UsageError(f"-a {word}: only a file id can have a kind in front: leave it out for a path or a URL")
    if not re.match(r"https?://", word, re.IGNORECASE):
        return None
    try:
        host, path = urlsplit(word).hostname, urlsplit(word).path.lower()
    except ValueError:
        host = None
    if not host or re.search(r"[\x00-\x20\x7f]", word):
        raise UsageError(f"{word!a} is not a URL")
    kind = next((kind for suffix, kind in _SUFFIXES.items() if path.endswith(suffix)), None)
    if kind is None:
        raise UsageError(
            f"the URL {word.partition('?')[0]} does not end in {', '.join(_SUFFIXES)}: download it and attach the file"
        )
    return {"type": kind, "source": {"type": "url", "url": word}}


def _of_id(kind: str, number: str) -> dict[str, Any]:
    if kind not in _KINDS:
        raise UsageError(f"-a {kind}:{number}: a file id can be a document, an image or a container, not a {kind}")
    if kind == "container":
        return {"type": "container_upload", "file_id": number}
    return {"type": kind, "source": {"type": "file", "file_id": number}}


def readable(block: dict[str, Any], word: str, *, by_llamacpp: bool) -> dict[str, Any]:
    """A block as servers other than Anthropic's read it: a document of text as text with its title.

    `by_llamacpp` says that it is llama.cpp, which skips every other document and says nothing: UsageError, with `word`.
    """
    source = block["source"]["type"] if "source" in block else "file"
    if block["type"] == "document" and source == "text":
        title = f"{block['title']}:\n\n" if "title" in block else ""
        return {"type": "text", "text": title + block["source"]["data"]}
    if by_llamacpp and (block["type"] == "document" or source != "base64"):
        kind = {"url": "a URL", "file": "a file id"}.get(source, "a PDF")
        raise UsageError(f"--local cannot read {kind}: attach {word} as an image or UTF-8 text")
    return block


def _kind(data: bytes, beginnings: Mapping[bytes, str]) -> str | None:
    return next((kind for begins, kind in beginnings.items() if re.match(begins, data, re.DOTALL)), None)


def _base64(media_type: str, data: bytes) -> dict[str, Any]:
    return {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}


def _text(data: bytes, source: str) -> str:
    with contextlib.suppress(UsageError):
        text = decoded(data, source)
        if "\0" not in text:
            return text
    raise UsageError(f"{source} is {_kind(data, _OTHERS) or 'not an image, a PDF or UTF-8 text'}; {_FITTING}")
