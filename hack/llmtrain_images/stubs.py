"""The CUDA libraries of the CPU variant of the trainer image.

PyPI has no torch for x86-64 without CUDA. A process without a GPU loads the CUDA libraries that
torch is linked with, but calls few of them. The others are replaced by libraries with the same
names and symbols, whose functions end the process with a message. They are tied to the version of
torch; a test trains with them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT_LIBRARY = "libtorch_python.so"
CALLED = ("libcudart", "libcudnn", "libcufile", "libcupti")
"""Libraries that are called without a GPU too. Together they have 11 MB."""
COMPILER = ("gcc", "nm", "readelf"), ("gcc", "binutils", "libc6-dev")
"""Commands that are called here, and their packages."""
_FUNCTIONS = "TWi"
_DATA = "BDRVu"
_SOURCE = """#include <unistd.h>
#include <stdlib.h>
static const char text[] = "{name}: this image has no CUDA (docs/images.md)\\n";
__attribute__((used)) static void llmtrain_no_cuda(void) {{
    if (write(2, text, sizeof text - 1)) abort();
    abort();
}}
"""


@dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """A name that a library defines; `version` is empty where it has none."""

    name: str
    version: str
    is_function: bool


def write_cuda_libraries(site_packages: Path, target: Path) -> dict[str, int]:
    """Write the CUDA libraries that torch is linked with below `target`, most of them as stubs.

    Return the number of symbols of each stub.
    """
    stubs = {}
    for source in linked_libraries(site_packages):
        copy = target / source.relative_to(site_packages)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.name.startswith(CALLED):
            shutil.copy2(source, copy)
        else:
            symbols = defined_symbols(source)
            write_stub(source.name, symbols, copy)
            stubs[source.name] = len(symbols)
    return stubs


def linked_libraries(site_packages: Path) -> list[Path]:
    """Return the CUDA libraries that the dynamic linker loads with torch."""
    own = {path.name: path for path in (site_packages / "torch" / "lib").glob("*.so*")}
    cuda = {path.name: path for path in (site_packages / "nvidia").glob("**/*.so*")}
    found, waiting = set(), [own[ROOT_LIBRARY]]
    while waiting:
        for name in _needed(waiting.pop()):
            path = own.get(name) or cuda.get(name)
            if path is not None and path not in found:
                found.add(path)
                if name in own:
                    waiting.append(path)
    return sorted(found & set(cuda.values()))


def defined_symbols(library: Path) -> list[Symbol]:
    """Return the symbols that other libraries can use, each in its default version."""
    options = ["-D", "--defined-only", "--with-symbol-versions"]
    found = set()
    for line in _output("nm", *options, str(library)).splitlines():
        *_, kind, text = line.split()
        name, at, version = text.partition("@")
        if kind in "A" or (at and not version.startswith("@")):
            continue
        if kind in _FUNCTIONS + _DATA:
            found.add(Symbol(name, version.removeprefix("@"), kind in _FUNCTIONS))
    return sorted(found)


def write_stub(name: str, symbols: Iterable[Symbol], target: Path) -> None:
    """Compile a library of that name with these symbols."""
    lines, versions = [], defaultdict(list)
    for symbol in symbols:
        kind = "function" if symbol.is_function else "object"
        place = "llmtrain_no_cuda" if symbol.is_function else "text"
        lines.append(
            f'__asm__(".globl {symbol.name}\\n.type {symbol.name},@{kind}\\n'
            f'.set {symbol.name},{place}");'
        )
        versions[symbol.version].append(symbol.name)
    source, script = target.with_suffix(".c"), target.with_suffix(".map")
    source.write_text(_SOURCE.format(name=name) + "\n".join(lines) + "\n")
    script.write_text(
        "".join(
            f"{version} {{ global: {'; '.join(names)}; }};\n"
            for version, names in sorted(versions.items())
            if version
        )
    )
    options = ["-shared", "-fPIC", "-s", "-fno-toplevel-reorder", f"-Wl,-soname,{name}"]
    if script.stat().st_size:
        options.append(f"-Wl,--version-script={script}")
    _output("gcc", *options, "-o", str(target), str(source))
    source.unlink()
    script.unlink()


def _needed(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-d", str(library)))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])} failed:\n{done.stderr[-2000:]}")
    return done.stdout
