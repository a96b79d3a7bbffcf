"""Stack Exchange dumps: `Posts.xml`."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import iterparse

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.compressed import open_bytes
from llmtrain_trainer.data.readers.html import html_text

QUESTION, ANSWER = "1", "2"
"""PostTypeId of the posts that are text. The others are tag wikis and notices."""


def read_stackexchange(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield every question, with its title first, and every answer as a document."""
    with open_bytes(file.path) as stream:
        events = iterparse(stream, events=("start", "end"))
        _, root = next(events)
        for event, element in events:
            if event == "end" and element.tag == "row":
                post = element.attrib
                if post.get("PostTypeId") in (QUESTION, ANSWER):
                    text = html_text(post.get("Body", ""))
                    title = f"{post['Title']}\n\n" if "Title" in post else ""
                    yield Document(f"{file.name}#{post.get('Id')}", title + text)
                root.clear()
