"""Check the style rules that no linter has: `python hack/check_style.py [FOLDER ...]`.

Each violation is one line, `FILE:LINE: what`; the exit code is then 1. Files that git would add are
checked too.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 50
FOLDER_FILES = 20
ROOT_FILES = {"operator/llmtrain_operator": 9, "trainer/llmtrain_trainer": 5}
SOURCES = ("core", "operator", "trainer", "cli", "hack")
PROSE = (*SOURCES, "docs", "crds", "charts", "deploy", "examples")
PROSE_FILES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Makefile",
    "Dockerfile",
)
NOT_PROSE = (".sum", ".mod")

LISTS = Path("tests/style")
FORMATTER_OFF = re.compile(r"#\s*fmt:\s*(skip|off)")


def main(folders: list[str]) -> int:
    """Check the given folders, all by default, and return the exit code."""
    files = _list_files()
    empty = [folder for folder in folders if not any(_is_inside(f, folder) for f in files)]
    if empty:
        print(f"check_style: no file in {', '.join(empty)}", file=sys.stderr)
        return 2
    chosen = [f for f in files if not folders or any(_is_inside(f, folder) for folder in folders)]
    trees = {f: ast.parse(Path(f).read_text("utf-8")) for f in files if _is_source(f)}
    sources = {f: trees[f] for f in chosen if f in trees}
    found = [
        *_informal(chosen),
        *_unclear_names(sources),
        *_same_names(trees, frozenset(chosen)),
        *_sizes(chosen, sources),
        *_folders(chosen),
        *_skips(chosen),
    ]
    for line in found:
        print(line)
    return 1 if found else 0


def _list_files() -> list[str]:
    """Return all files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    names = sorted(set(listed.stdout.split("\0")) - {""})
    return [name for name in names if Path(name).is_file()]


def _is_inside(name: str, folder: str) -> bool:
    return Path(name).is_relative_to(folder)


def _is_source(name: str) -> bool:
    return name.endswith(".py") and any(_is_inside(name, source) for source in SOURCES)


def _is_prose(name: str) -> bool:
    if name.endswith(NOT_PROSE):
        return False
    return name in PROSE_FILES or any(_is_inside(name, folder) for folder in PROSE)


def _listed(name: str) -> list[str]:
    """Return the entries of a word list; `#` starts a comment."""
    lines = (LISTS / name).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _informal(files: Iterable[str]) -> Iterator[str]:
    """Find informal words in code and prose."""
    # A phrase may go over the end of a line, and over the mark of a comment.
    gap = r"(?:\s|#)+"
    phrases = (gap.join(map(re.escape, entry.split())) for entry in _listed("informal.txt"))
    words = re.compile(rf"\b({'|'.join(phrases)})\b", re.IGNORECASE)
    for name in files:
        if not _is_prose(name):
            continue
        text = Path(name).read_text("utf-8")
        for match in words.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            found = " ".join(match[0].split())
            yield f"{name}:{number}: {found!r} is not plain technical English"


def _unclear_names(sources: Mapping[str, ast.Module]) -> Iterator[str]:
    """Find class names that do not say what the class is among the identifiers."""
    names = frozenset(_listed("unclear_names.txt"))
    for name in sources:
        code = io.StringIO(Path(name).read_text("utf-8"))
        for token in tokenize.generate_tokens(code.readline):
            if token.type == tokenize.NAME and token.string in names:
                yield f"{name}:{token.start[0]}: the name {token.string} does not say what it is"


def _same_names(sources: Mapping[str, ast.Module], chosen: frozenset[str]) -> Iterator[str]:
    """Find public classes of the chosen files whose name another file has too."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, tree in sources.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{name}:{node.lineno}")
    for name, where in sorted(places.items()):
        if len(where) > 1 and any(place.rpartition(":")[0] in chosen for place in where):
            yield f"{where[0]}: class {name} is also in {', '.join(where[1:])}"


def _sizes(files: Iterable[str], sources: Mapping[str, ast.Module]) -> Iterator[str]:
    """Find files and functions that are too long."""
    for name in files:
        if name.endswith(".py"):
            count = len(Path(name).read_text("utf-8").splitlines())
            if count > FILE_LINES:
                yield f"{name}:1: {count} lines, more than {FILE_LINES}"
    for name, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > FUNCTION_LINES:
                    yield f"{name}:{node.lineno}: {node.name} has {count} lines"


def _folders(files: Iterable[str]) -> Iterator[str]:
    """Find folders with too many Python files."""
    counts: dict[str, int] = defaultdict(int)
    for name in files:
        if _is_source(name):
            counts[str(Path(name).parent)] += 1
    for folder, count in sorted(counts.items()):
        most = ROOT_FILES.get(folder, FOLDER_FILES)
        if count > most:
            yield f"{folder}: {count} Python files, more than {most}"


def _skips(files: Iterable[str]) -> Iterator[str]:
    """Find comments that switch the formatter off."""
    for name in files:
        if not name.endswith(".py"):
            continue
        code = io.StringIO(Path(name).read_text("utf-8"))
        for token in tokenize.generate_tokens(code.readline):
            if token.type == tokenize.COMMENT and FORMATTER_OFF.match(token.string):
                yield f"{name}:{token.start[0]}: {token.string!r} switches the formatter off"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
