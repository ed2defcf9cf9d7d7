"""Pages as a model reads them."""

import asyncio
import os
import sys
import time
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import ARTICLE, USER

from gatehouse_fetch import FetchError, reading
from gatehouse_fetch.reading import Reader, Reading, read
from gatehouse_fetch.workers import Workers

URL = "https://example.com/folder/page"
WHOLE = slice(0, sys.maxsize)


def page(body: str | bytes, charset: str | None = None, *, html: bool = True, raw: bool = False) -> Reading:
    return read(body.encode() if isinstance(body, str) else body, charset, URL, html, raw, WHOLE)


def test_the_main_content_as_markdown() -> None:
    article = page(ARTICLE)
    assert article.title == "An article"
    assert article.text.startswith("# An article\n")
    assert "Paragraph 7 has **enough** text, and a [link](https://example.com/next)." in article.text
    assert "never shown" not in article.text
    assert "<" not in article.text


def test_a_page_without_main_content_is_given_whole() -> None:
    hours = page("<title>Hours</title><h1>Opening hours</h1><p>From nine to five.<script>x()</script>")
    assert (hours.title, hours.text) == ("Hours", "# Opening hours\n\nFrom nine to five.")
    items = "".join(f"<li><a href='p{number}'>Item {number}</a></li>" for number in range(40))
    index = page(f"<body><h2>Index</h2><ul>{items}</ul></body>").text
    assert index.startswith("## Index\n\n* [Item 0](https://example.com/folder/p0)\n* [Item 1]")
    assert "[Item 39](https://example.com/folder/p39)" in index


@pytest.mark.parametrize(
    "body", ["", " \n", "<!-- only this -->", "<html><body></body></html>", "<script>x()</script>"]
)
def test_a_page_without_text(body: str) -> None:
    assert page(body).text == ""


def test_what_is_no_html_stays_as_it_is() -> None:
    assert page('{"a": "<b>"}', html=False).text == '{"a": "<b>"}'
    assert page("<p>x</p>", raw=True).text == "<p>x</p>"
    assert page("a\x00b\x1b[31mc\r\n\td\x7f", html=False).text == "ab[31mc\r\n\td"


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("grüß 世界".encode(), None, "grüß 世界"),
        ("grüß".encode("latin-1"), "ISO-8859-1", "grüß"),
        ("“grüß”".encode("cp1252"), "iso-8859-1", "“grüß”"),
        ("世界".encode("shift_jis"), "Shift_JIS", "世界"),
        ("grüß".encode("utf-16"), "latin-1", "grüß"),
        ("\ufeffgrüß".encode(), "latin-1", "grüß"),
        ('<meta charset="windows-1251"><p>привет'.encode("cp1251"), None, "привет"),
        ('<meta http-equiv=Content-Type content="text/html; charset=koi8-r">привет'.encode("koi8-r"), None, "привет"),
        ('<?xml version="1.0" encoding="iso-8859-2"?><p>žluť'.encode("iso-8859-2"), None, "žluť"),
        ('<meta charset="latin-1"><p>grüß'.encode(), "utf-8", "grüß"),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю. ".encode("cp1251") * 5, None, "французских булок"),
        ("grüß".encode(), "no-such-charset", "grüß"),
        ("grüß".encode(), "zlib", "grüß"),
        ("grüß".encode(), "punycode", "grüß"),
        (b"gr\xfc\xdf \xff\xfe", "utf-8", "gr"),
    ],
)  # fmt: skip
def test_charsets(body: bytes, charset: str | None, text: str) -> None:
    assert text in page(body, charset, html=False).text


def test_a_charset_that_the_page_names_does_not_disturb_the_parser() -> None:
    xhtml = '<?xml version="1.0" encoding="iso-8859-1"?><html><body><p>grüß</p></body></html>'
    assert page(xhtml.encode("latin-1")).text == "grüß"


@pytest.mark.parametrize(
    "body",
    ["<div>" * 100_000 + "x", "<ul><li>" * 120 + "x", "<table><tr><td>" * 80, "<b>x" * 2000, "<p>\ud800</p>", "<a href='http://[bad'>x</a><base href='http://['>"],
    ids=["deep", "lists", "tables", "bold", "surrogate", "link"],
)  # fmt: skip
def test_pages_that_are_hard_to_read(body: str) -> None:
    assert isinstance(page(body.encode("utf-8", "surrogatepass")).text, str)


async def test_a_worker_reads() -> None:
    first = await reader_reads(Reader(Workers()), ARTICLE.encode())
    assert first == page(ARTICLE)


def test_of_a_page_that_grows_no_more_is_given_than_was_asked_for() -> None:
    """Each of its links is as long as the base that it names."""
    links = "<li><a href=y>z</a>" * 200
    body = f"<base href='http://x.test/{'x' * 1000}/'><body><h2>Index</h2><ul>{links}</ul></body>"
    grown = read(body.encode(), None, URL, True, False, slice(5, 25))
    assert grown == Reading("", page(body).text[5:25], len(page(body).text))
    assert grown.total > 200_000


async def reader_reads(reader: Reader, body: bytes, user: str = USER) -> Reading:
    return await reader.read(user, body, None, URL, html=True, raw=False, part=WHOLE)


def stuck(*_arguments: Any) -> Reading:
    """A page that takes for ever."""
    while True:
        time.sleep(0.1)


def killed(*_arguments: Any) -> Reading:
    """A page that is too much for its worker."""
    os._exit(1)


def hungry(*_arguments: Any) -> Reading:
    """A page that takes more memory than there is for it."""
    bytearray(1024 * 1024 * 1024)
    return Reading("", "", 0)


class UnexpectedError(Exception):
    """An error that cannot be pickled as it is."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def confused(*_arguments: Any) -> Reading:
    """A page that its parser does not expect."""
    raise UnexpectedError("tell-no-one", "")


@pytest.mark.parametrize(
    ("fault", "seconds", "said"),
    [
        (stuck, 3.0, "too long"),
        (killed, 60.0, "too much"),
        (hungry, 60.0, "too much"),
        (confused, 60.0, "cannot be made"),
    ],
)
async def test_a_page_that_cannot_be_read_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Any, seconds: float, said: str
) -> None:
    reader = Reader(Workers())
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read", fault)
        patch.setattr(reading, "READ_SECONDS", seconds)
        with pytest.raises(FetchError, match=said):
            await reader_reads(reader, b"x")
    assert "tell-no-one" not in caplog.text
    with anyio.fail_after(60):
        assert (await reader_reads(reader, b"x")).text == "x"


async def test_pages_of_one_user_keep_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(Workers())
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read", stuck)
        patch.setattr(reading, "READ_SECONDS", 600.0)
        waiting = [asyncio.create_task(reader_reads(reader, b"x", "eve")) for _ in range(4)]
        await asyncio.sleep(0.1)
    try:
        with anyio.fail_after(60):
            assert (await reader_reads(reader, b"x", "ana")).text == "x"
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


TOKENS = [
    "<p>", "</p>", "<div class=x id='y'>", "</div>", "<a href='//[x'>", "<a href=javascript:x>", "</a>", "<table>", "<tr>",
    "<td colspan=99999>", "</table>", "<ul>", "<ol start=x>", "<li>", "<pre>", "<code>", "</pre>", "<h1>", "</h9>", "<img src=x>",
    "<br>", "<hr>", "<b>", "<script>", "</script>", "<!--", "-->", "<![CDATA[", "<?x", "&#0;", "&#xd800;", "&amp", "<", ">", '"',
    "<title>", "<base href='http://['>", "<meta charset=x>", "<svg>", "<template>", "<frameset>", "text", " ", "\n", "ü\u202e", "*_`[]",
]  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.sampled_from(TOKENS), max_size=60).map("".join))
def test_any_page_can_be_read(body: str) -> None:
    assert "\x00" not in page(body).text
    assert page(body, raw=True).text == body


@settings(max_examples=60)
@given(
    st.binary(max_size=200),
    st.none() | st.sampled_from(["utf-16", "gb18030", "iso-2022-jp", "x-user-defined", "replacement"]),
)
def test_any_bytes_can_be_read(body: bytes, charset: str | None) -> None:
    page(body, charset)
