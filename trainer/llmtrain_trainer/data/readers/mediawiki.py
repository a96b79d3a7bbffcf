"""MediaWiki XML dumps (`*-pages-articles.xml.bz2`): plain text of the articles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from xml.etree.ElementTree import Element, iterparse

import mwparserfromhell
from mwparserfromhell.parser import ParserError

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.compressed import open_bytes

_NO_TEXT = ("file:", "image:", "category:")
"""Links that embed a file or assign a category. They are not part of a sentence."""
_VERBATIM = ("pre", "code", "syntaxhighlight", "source")
_PLACE = re.compile("\uffff[0-9a-f]{16}-[0-9]+\uffff")
"""The place of a verbatim text. A page cannot spell it, because it has a digest of the page."""


def read_mediawiki(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield every page of the article namespace that is not a redirect, with its title first."""
    with open_bytes(file.path) as stream:
        path: list[Element] = []
        for event, element in iterparse(stream, events=("start", "end")):
            if event == "start":
                path.append(element)
                continue
            path.pop()
            if _tag(element) == "page":
                yield from _article(file, element)
                path[-1].clear()  # a dump does not fit in memory


def _article(file: InputFile, page: Element) -> Iterator[Document]:
    fields = {_tag(element): element for element in page.iter()}
    title, text = fields.get("title"), fields.get("text")
    namespace = fields.get("ns")
    if "redirect" in fields or (namespace is not None and namespace.text != "0"):
        return
    if title is not None and text is not None and text.text:
        yield Document(f"{file.name}#{title.text}", f"{title.text}\n\n{wiki_text(text.text)}")


def _tag(element: Element) -> str:
    """Return a tag without its namespace, which contains the schema version."""
    return element.tag.rpartition("}")[2]


def wiki_text(markup: str) -> str:
    """Return the prose of a page, without templates, tables and references.

    More than one empty line is collapsed, but not inside programs and other verbatim text.
    """
    try:
        page = mwparserfromhell.parse(markup)
    except ParserError:
        return markup
    # a node is emptied, because the search for its place to remove it is as long as the page
    for tag in page.filter_tags(matches=lambda node: str(node.tag).lower() in ("ref", "table")):
        tag.contents = ""
    for link in page.filter_wikilinks():
        if str(link.title).strip().lower().startswith(_NO_TEXT):
            link.title = link.text = ""
    verbatim: dict[str, str] = {}
    digest = blake2b(markup.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    for tag in page.filter_tags(matches=lambda node: str(node.tag).lower() in _VERBATIM):
        if tag.contents is not None:
            text = str(tag.contents.strip_code(normalize=True, collapse=False))
            place = f"\uffff{digest}-{len(verbatim)}\uffff"
            tag.contents = place
            verbatim[place] = text.strip("\n")
    text = str(page.strip_code(normalize=True, collapse=True))
    return _PLACE.sub(lambda place: verbatim.get(place[0], place[0]), text)
