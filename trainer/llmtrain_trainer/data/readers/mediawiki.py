"""MediaWiki XML dumps (`*-pages-articles.xml.bz2`): plain text of the articles."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, iterparse

import mwparserfromhell
from mwparserfromhell.parser import ParserError

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.compressed import open_bytes

_NO_TEXT = ("file:", "image:", "category:")
"""Links that embed a file or assign a category. They are not part of a sentence."""


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
    """Return the prose of a page, without templates, tables and references."""
    try:
        page = mwparserfromhell.parse(markup)
    except ParserError:
        return markup
    unwanted = [
        *page.filter_tags(matches=lambda node: str(node.tag).lower() in ("ref", "table")),
        *page.filter_wikilinks(
            matches=lambda node: str(node.title).strip().lower().startswith(_NO_TEXT)
        ),
    ]
    for node in unwanted:
        try:
            page.remove(node)
        except ValueError:  # was removed with the node around it
            continue
    return str(page.strip_code(normalize=True, collapse=True))
