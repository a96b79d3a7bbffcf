#!/bin/sh
# Print the Python for .venv, given uv: of the builds of one version on PATH, the fastest. Without
# profile-guided optimization, as pyenv compiles it, an interpreter takes up to twice the CPU time.
# The version is that of the first Python on PATH that this project supports.
set -eu
first="$("$1" python find --system --no-project '>=3.11,<3.14' 2>/dev/null)" || exit 1
version="$("$first" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

# Prints the CPU seconds of a loop; nothing for another version, in a virtual environment, and if a
# part of the standard library is missing. A build without headers comes last, because torch.compile
# needs them.
probe='
import ctypes, lzma, os, sqlite3, ssl, sys, sysconfig, time

def seconds():
    start, total = time.process_time(), 0
    for number in range(300000):
        total += number
    return time.process_time() - start

if sys.argv[1] == "%d.%d" % sys.version_info[:2] and sys.prefix == sys.base_prefix:
    headers = os.path.join(sysconfig.get_path("include"), "Python.h")
    least = min(seconds() for _ in range(15))
    print(int(not os.path.exists(headers)), "%.6f" % least, os.path.realpath(sys.executable))
'
{
    echo "$first"
    IFS=:
    for folder in $PATH; do
        for name in python3 "python$version"; do
            if [ -x "$folder/$name" ]; then readlink -f "$folder/$name"; fi
        done
    done
} | sort -u | while read -r python; do
    "$python" -c "$probe" "$version" 2>/dev/null || true
done | LC_ALL=C sort -k1,1n -k2,2n | head -n 1 | cut -d ' ' -f 3-
