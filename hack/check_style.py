"""Check the rules of style that no linter has: `python hack/check_style.py [FOLDER ...]`.

Each rule prints what breaks it as `FILE:LINE: what`; the exit code is 1 if anything does.
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
FMT_SKIPS = 20
SOURCES = ("core", "operator", "trainer", "cli", "hack")
PROSE = (*SOURCES, "docs", "README.md", "CHANGELOG.md", "crds", "deploy", "examples")

LISTS = Path("tests/style")


def main(folders: list[str]) -> int:
    """Check the given folders, all by default, and return the exit code."""
    files = _tracked()
    chosen = [f for f in files if not folders or f.startswith(tuple(folders))]
    sources = {f: ast.parse(Path(f).read_text("utf-8")) for f in chosen if _is_source(f)}
    found = [
        *_informal(chosen),
        *_unclear_names(sources),
        *_same_names(sources),
        *_sizes(chosen, sources),
        *_folders(chosen),
        *_skips(chosen),
    ]
    for line in found:
        print(line)
    return 1 if found else 0


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if Path(name).is_file()]


def _is_source(name: str) -> bool:
    return name.endswith(".py") and name.startswith(tuple(f"{s}/" for s in SOURCES))


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
        if not name.startswith(PROSE) or name.endswith((".sum", ".mod")):
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


def _same_names(sources: Mapping[str, ast.Module]) -> Iterator[str]:
    """Find public classes of one name in two files."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, tree in sources.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{name}:{node.lineno}")
    for name, where in sorted(places.items()):
        if len(where) > 1:
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
    """Find too many exceptions from the formatter."""
    marked = [
        f"{name}:{number}"
        for name in files
        if name.endswith(".py")
        for number, line in enumerate(Path(name).read_text("utf-8").splitlines(), 1)
        if line.rstrip().endswith("# fmt: skip")
    ]
    if len(marked) > FMT_SKIPS:
        yield f"{marked[FMT_SKIPS]}: {len(marked)} times '# fmt: skip', more than {FMT_SKIPS}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
