r"""LaTeX as arXiv hands it out, cleaned as for LLaMA (arXiv:2302.13971, section 2.1).

Comments, all before the first section and the bibliography go; macros without arguments are
written out. The rest stays LaTeX. A paper is a `.tex` file, or a tar of one submission, whose
`\input`s are followed; a bulk tar holds many, each a `.gz`.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.compressed import open_bytes

PAPER_LIMIT = 64 << 20
"""Bytes of one unpacked submission. Longer ones are truncated."""

_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*")
_SECTION = re.compile(r"\\(?:section|chapter)\b\*?")
_END = re.compile(r"\\(?:bibliography\b|begin\{thebibliography\}|end\{document\}|appendix\b)")
_INPUT = re.compile(r"\\(?:input|include)\s*\{([^}]+)\}")
_MACRO = re.compile(
    r"\\(?:re)?newcommand\*?\s*\{?\\([A-Za-z]+)\}?\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
    r"|\\def\s*\\([A-Za-z]+)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)


def read_latex(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield every paper of a `.tex` file, a submission or a bulk tar."""
    with open_bytes(file.path) as stream:
        start = stream.read(512)
        if not _is_tar(start):
            texts = {"main.tex": _decode(start + stream.read(PAPER_LIMIT))}
            yield Document(file.name, clean_latex(join_inputs(texts)))
            return
    with open_bytes(file.path) as stream:
        yield from _archive(file, stream)


def _archive(file: InputFile, stream: io.BufferedIOBase | object) -> Iterator[Document]:
    loose: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if member.name.endswith(".gz"):
                    paper = _submission(content.read())
                    yield Document(f"{file.name}#{member.name}", clean_latex(paper))
                elif member.name.endswith(".tex"):
                    loose[member.name] = _decode(content.read(PAPER_LIMIT))
    except tarfile.TarError as error:
        raise file.unreadable(str(error)) from error
    if loose:
        yield Document(file.name, clean_latex(join_inputs(loose)))


def _submission(packed: bytes) -> str:
    with gzip.open(io.BytesIO(packed)) as stream:
        content = stream.read(PAPER_LIMIT)
    if not _is_tar(content):
        return _decode(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        texts = {
            member.name: _decode(part.read(PAPER_LIMIT))
            for member in archive
            if member.name.endswith(".tex") and (part := archive.extractfile(member))
        }
    return join_inputs(texts)


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar"


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # the encoding of most older submissions


def join_inputs(texts: Mapping[str, str]) -> str:
    r"""Return the main file (the first with `\documentclass`) with its inputs in their places."""
    names = sorted(texts)
    main = next((name for name in names if "\\documentclass" in texts[name]), None)
    if main is None:
        return "\n\n".join(texts[name] for name in names)
    folder = PurePosixPath(main).parent

    def follow(text: str, open_files: tuple[str, ...]) -> str:
        def replace(found: re.Match[str]) -> str:
            name = str(folder / found[1].strip())
            name = name if name in texts else f"{name}.tex"
            if name not in texts or name in open_files:
                return ""
            return follow(texts[name], (*open_files, name))

        return _INPUT.sub(replace, _COMMENT.sub(r"\1", text))

    return follow(texts[main], (main,))


def clean_latex(text: str) -> str:
    """Remove comments, preamble and bibliography; expand macros without arguments."""
    text = _COMMENT.sub(r"\1", text)
    macros = {
        found[1] or found[3]: found[2] if found[1] else found[4] for found in _MACRO.finditer(text)
    }
    macros = {name: body for name, body in macros.items() if "#" not in body}
    start = _SECTION.search(text) or re.search(r"\\begin\{document\}", text)
    body = text[start.start() :] if start else text
    end = _END.search(body)
    body = body[: end.start()] if end else body
    if macros:
        names = "|".join(sorted(map(re.escape, macros), key=len, reverse=True))
        body = re.sub(rf"\\({names})(?![A-Za-z])", lambda found: macros[found[1]], body)
    return body.removeprefix("\\begin{document}")
