"""HTML as text: what a browser shows, with the white space of `<pre>` and `<code>`."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_HEAD = {"base", "basefont", "bgsound", "link", "meta", "noframes", "script", "style", "template"}
"""Elements of a head. Any other one starts the body (HTML standard, 13.2.6.4.4)."""
_HIDDEN = {
    *("head", "title", "noscript", "script", "style", "template"),
    *("svg", "iframe", "nav", "footer"),
}
_PARAGRAPHS = {
    *("article", "aside", "blockquote", "dl", "figure", "form", "hr", "main", "ol", "p", "pre"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "section", "table", "ul"),
}
"""Elements with an empty line before and after them."""
_LINES = {
    *("address", "body", "caption", "dd", "div", "dt", "fieldset", "figcaption", "header", "html"),
    *("legend", "li", "option", "tbody", "tfoot", "thead", "tr"),
}
"""Elements that start and end a line."""
_CELLS = {"td", "th"}
_VERBATIM = {"pre", "code", "samp", "textarea", "listing", "xmp"}
_SPACES = re.compile(r"[ \t\n\r\f]+")
"""White space that browsers collapse. A no-break space is none of it."""

_TAG = re.compile(r"<[a-zA-Z/!?]")


def html_text(page: str) -> str:
    """Return the visible text, without scripts, navigation and footers.

    White space is collapsed as in a browser, so the lines of a paragraph are joined. In `<pre>` and
    `<code>` it is kept. The cells of a table row are separated by tabs.
    """
    text = _Text()
    text.feed(_without_open_tag(page))
    text.close()
    return "".join(text.parts)


def _without_open_tag(page: str) -> str:
    """Return a page without a tag that its end leaves open. Browsers drop it too.

    The parser would search for the end of each such tag to the end of the page: quadratic time.
    """
    tag = _TAG.search(page, page.rfind(">") + 1)
    return page if tag is None else page[: tag.start()]


def _close(open_tags: list[str], tag: str) -> bool:
    """Remove the last `tag` and what is open inside it. Return False if there is none."""
    for place in reversed(range(len(open_tags))):
        if open_tags[place] == tag:
            del open_tags[place:]
            return True
    return False


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []
        self._verbatim: list[str] = []
        self._gap = ""
        """White space before the next text."""
        self._opens_pre = False
        """The next character is the first one of a `<pre>`."""
        self._is_end = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self._hidden.clear()  # </head> may be omitted
        elif self._hidden[-1:] == ["head"] and tag not in _HEAD and tag not in _HIDDEN:
            self._hidden.pop()
        if tag in _HIDDEN:
            self._hidden.append(tag)
            return
        self._separate(tag)
        if tag in _VERBATIM:
            self._verbatim.append(tag)
            self._opens_pre = tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in _HIDDEN:  # <svg/>; HTML ignores the slash of other elements
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if _close(self._hidden, tag):
            return
        if _close(self._verbatim, tag) and tag == "pre" and self.parts:
            self.parts[-1] = self.parts[-1].removesuffix("\n")
        if tag != "br":
            self._separate(tag)

    def _separate(self, tag: str) -> None:
        if self._hidden:
            return
        if tag == "br":
            self._gap = "\n\n" if "\n" in self._gap else "\n"
        elif tag in _PARAGRAPHS:
            self._gap = "\n\n"
        elif tag in _LINES:
            self._gap = self._gap if "\n" in self._gap else "\n"
        elif tag in _CELLS:
            self._gap = self._gap if "\n" in self._gap else "\t"

    def close(self) -> None:
        self._is_end = True
        super().close()

    def parse_comment(self, i: int, report: bool = True) -> int:
        """Skip a comment, to the end of the page if it is not closed, as browsers do."""
        end = super().parse_comment(i, report)
        return len(self.rawdata) if end < 0 and self._is_end else end

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        """Skip `<![..]>` like browsers. The library raises an AssertionError for most of them."""
        return self.parse_bogus_comment(i)

    def handle_data(self, data: str) -> None:
        if self._hidden == ["head"] and data.strip():
            self._hidden.clear()  # text is not part of a head
        if self._hidden or not data:
            return
        if self._verbatim:
            data = data.replace("\r\n", "\n").replace("\r", "\n")
            if self._opens_pre:
                data, self._opens_pre = data.removeprefix("\n"), False
            self._write(data)
            return
        text = _SPACES.sub(" ", data)
        if text[0] == " ":
            self._gap = self._gap or " "
        if text != " ":
            self._write(text.strip(" "))
            if text[-1] == " ":
                self._gap = " "

    def _write(self, text: str) -> None:
        if not text:
            return
        if self.parts:
            self.parts.append(self._gap)
        self._gap = ""
        self.parts.append(text)
