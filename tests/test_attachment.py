"""streamcli.turns.attachment: which block carries what. The command's side of it is in cli/attach.txt."""

import base64

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamcli.errors import UsageError
from streamcli.turns.attachment import by_reference, of_bytes, readable

IMAGES = {
    "image/png": b"\x89PNG\r\n\x1a\nrest",
    "image/jpeg": b"\xff\xd8\xff\xe0rest",
    "image/gif": b"GIF87arest",
    "image/webp": b"RIFF\x10\0\0\0WEBPrest",
}
UNFIT = {
    b"PK\x03\x04\xff": "zip archive",
    b"BM\xff": "BMP",
    b"II*\0": "TIFF",
    b"\0\0\0\x18ftypheic\xff": "HEIC",
    b"\xff\xfeh\0": "UTF-16",
    b"\x80": "not an image, a PDF or UTF-8 text",
    b"a\0b": "not an image, a PDF or UTF-8 text",
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_goes_untouched(kind):
    source = of_bytes(IMAGES[kind], "a file", "a.txt")["source"]
    assert (source["type"], source["media_type"]) == ("base64", kind)
    assert base64.b64decode(source["data"], validate=True) == IMAGES[kind]


def test_a_pdf_is_a_document_with_its_title():
    block = of_bytes(b"%PDF-1.4\xff", "a file", "paper.pdf")
    assert (block["type"], block["title"], block["source"]["media_type"]) == (
        "document",
        "paper.pdf",
        "application/pdf",
    )


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_is_a_document_of_that_text(text):
    data = text.encode()
    expected = data.decode("utf-8-sig")
    assume(expected.strip())
    block = of_bytes(data, "a file")
    if block["type"] == "document" and block["source"]["type"] == "text":
        assert block == {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": expected},
        }
    else:
        assert text.startswith(("GIF", "RIFF", "%PDF"))


@pytest.mark.parametrize("data", UNFIT)
def test_what_no_block_carries_is_named_with_what_would_do(data):
    with pytest.raises(UsageError, match=rf"^a file is .*{UNFIT[data]}.*PNG, JPEG, GIF, WebP, PDF and UTF-8 text can"):
        of_bytes(data, "a file")


def test_an_empty_file_is_rejected():
    with pytest.raises(UsageError, match="a file is empty"):
        of_bytes(b"", "a file")


@pytest.mark.parametrize(
    ("word", "kind", "source"),
    [
        ("https://a/b.png", "image", {"type": "url", "url": "https://a/b.png"}),
        ("HTTP://a/b.JPEG?c=.pdf", "image", {"type": "url", "url": "HTTP://a/b.JPEG?c=.pdf"}),
        ("https://a/b.pdf#page=2", "document", {"type": "url", "url": "https://a/b.pdf#page=2"}),
        ("file_011CNha8iCJc", "document", {"type": "file", "file_id": "file_011CNha8iCJc"}),
        ("document:file_1", "document", {"type": "file", "file_id": "file_1"}),
        ("image:file_1", "image", {"type": "file", "file_id": "file_1"}),
    ],
)
def test_a_reference_goes_as_it_is(word, kind, source):
    assert by_reference(word) == {"type": kind, "source": source}


@pytest.mark.parametrize(
    "word", ["a.png", "file_list.txt", "./file_1", "./image:file_1", "images:a.png", "ftp://a/b.png", "httpsomething"]
)
def test_anything_else_names_a_file(word):
    assert by_reference(word) is None


@pytest.mark.parametrize("word", ["https://a/", "https://a/b.html", "https://a/b?c=d.png"])
def test_a_url_whose_suffix_says_nothing_is_rejected(word):
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        by_reference(word)


class TestReadable:
    def test_text_is_a_text_block_that_begins_with_its_name(self):
        block = of_bytes(b"The word is plum.\n", "a file", "note.txt")
        wanted = {"type": "text", "text": "note.txt:\n\nThe word is plum.\n"}
        assert readable(block, "note.txt", by_llamacpp=False) == wanted
        assert readable(block, "note.txt", by_llamacpp=True) == wanted
        assert readable(of_bytes(b"plum", "standard input"), "standard input", by_llamacpp=True)["text"] == "plum"

    def test_an_image_stays_what_it_is(self):
        block = of_bytes(IMAGES["image/png"], "a file")
        assert readable(block, "a.png", by_llamacpp=True) is block

    @pytest.mark.parametrize(
        ("block", "kind"),
        [
            (of_bytes(b"%PDF-1.4", "a file", "a.pdf"), "a PDF"),
            (by_reference("https://example.com/a.pdf"), "a URL"),
            (by_reference("https://example.com/a.png"), "a URL"),
            (by_reference("file_123"), "a file id"),
            (by_reference("image:file_123"), "a file id"),
            (by_reference("container:file_123"), "a file id"),
        ],
    )
    def test_what_llama_cpp_would_skip_is_rejected_and_said(self, block, kind):
        assert readable(block, "WORD", by_llamacpp=False) is block
        with pytest.raises(UsageError, match=rf"--local cannot read {kind}: attach WORD as"):
            readable(block, "WORD", by_llamacpp=True)
