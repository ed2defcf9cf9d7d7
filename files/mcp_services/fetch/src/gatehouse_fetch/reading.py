"""Makes Markdown of what was fetched."""

import logging
import re
import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from anyio import BrokenWorkerProcess

from gatehouse_fetch import FetchError
from gatehouse_fetch.workers import Workers

LOG = logging.getLogger("gatehouse_fetch")
READ_SECONDS = 20.0
# Less than this may be a remark that was taken for the article.
MAIN_LENGTH = 250
TITLE_LENGTH = 300
# Where a page names its charset: within its first kilobyte (WHATWG HTML, «prescan»).
PRESCAN = 1024
DECLARED = re.compile(
    rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})|<\?xml[^>]{1,200}?encoding\s*=\s*["']([\w.:-]{1,40})""",
    re.IGNORECASE,
)
CONTROL = dict.fromkeys((*range(9), 11, *range(14, 32), 127))
# Not to be read by people, or of use to a browser only.
DROPPED = "//script|//style|//noscript|//template|//svg|//iframe|//canvas|//select"
# As deep as libxml2 lets elements be nested, and what that costs in Python.
RECURSION = 5000
# As much as says which charset it is.
SAMPLE = 64 * 1024


@dataclass(frozen=True)
class Reading:
    """A page as a model reads it, or a part of it.

    Attributes:
        title: The page's.
        text: The part.
        total: How many characters the page has.
    """

    title: str
    text: str
    total: int


class Reader:
    """Reads pages."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def read(
        self, user: str, body: bytes, charset: str | None, url: str, *, html: bool, raw: bool, part: slice
    ) -> Reading:
        """A part of the page: of its Markdown, or of it as it is where it is no HTML or `raw` is asked for.

        Raises:
            FetchError: it cannot be read.
        """
        try:
            return await self._workers.run(user, READ_SECONDS, read, body, charset, url, html, raw, part)
        except FetchError:
            raise
        except TimeoutError:
            raise FetchError("The page takes too long to make Markdown of; raw shows its source.") from None
        except BrokenWorkerProcess:
            raise FetchError("The page is too much to make Markdown of; raw shows its source.") from None
        except Exception as error:  # there is no end to what parsers make of pages
            LOG.warning("a page cannot be read: %s", type(error).__name__)
            raise FetchError("The page cannot be made Markdown of; raw shows its source.") from None


def read(body: bytes, charset: str | None, url: str, html: bool, raw: bool, part: slice) -> Reading:
    """What a worker does: see `Reader.read`. It cuts, since Markdown can be many times as long as its page."""
    text = _decoded(body, charset).translate(CONTROL)
    title, text = ("", text) if raw or not html else _markdown(text, url)
    return Reading(title, text[part], len(text))


def _decoded(body: bytes, charset: str | None) -> str:
    """Text by its byte order mark, else what the server says, else what the page says, else what it looks like."""
    # Here, and below: what only the workers need.
    import webencodings
    from charset_normalizer import from_bytes

    labels = [charset or ""]
    if declared := DECLARED.search(body[:PRESCAN]):
        labels.append((declared[1] or declared[2]).decode("ascii", "replace"))
    for encoding in filter(None, map(webencodings.lookup, labels)):
        return str(webencodings.decode(body, encoding)[0])
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        guess = from_bytes(body[:SAMPLE]).best()
        return str(
            webencodings.decode(body, (guess and webencodings.lookup(guess.encoding)) or "windows-1252")[0]
        )


def _markdown(text: str, url: str) -> tuple[str, str]:
    """The title and the main content; where none stands out, the whole page."""
    import trafilatura
    from lxml import etree, html
    from trafilatura.settings import DEFAULT_CONFIG

    try:
        # Bytes, since lxml refuses text that names a charset of its own.
        parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
        tree = html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except etree.ParserError:  # nothing but white space and comments
        return "", ""
    title = " ".join((tree.findtext(".//title") or "").split())[:TITLE_LENGTH]
    config = deepcopy(DEFAULT_CONFIG)
    # Without this, it gives the bare text of the whole page where it finds nothing better. We keep its structure.
    config["DEFAULT"]["MIN_EXTRACTED_SIZE"] = "0"
    main = trafilatura.extract(
        deepcopy(tree),
        url=url,
        output_format="markdown",
        include_comments=False,
        include_links=True,
        include_tables=True,
        config=config,
    )
    if main and len(main) >= MAIN_LENGTH:
        return title, main
    return title, _whole(tree, url)


def _whole(tree: Any, url: str) -> str:
    """The whole page as Markdown; where it is nested too deeply for that, as text."""
    from lxml import etree
    from markdownify import markdownify

    for element in tree.xpath(DROPPED):
        element.drop_tree()
    with suppress(ValueError):  # a base that is no URL
        tree.make_links_absolute(url, handle_failures="ignore")
    body = tree.find("body")
    page = etree.tostring(tree if body is None else body, encoding="unicode", method="html")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(RECURSION)
    try:
        markdown = markdownify(page, heading_style="ATX", strip=["img"])
    except RecursionError:
        markdown = "\n".join(tree.itertext())
    finally:
        sys.setrecursionlimit(usual)
    return re.sub(r"\n\s*\n+", "\n\n", markdown).strip()
