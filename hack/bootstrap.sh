#!/bin/sh
# Print the path of a pinned uv, installing it once into the cache. Needs python3 alone: where its
# venv module is missing (Debian splits it off), pip's --target or the distribution's package helps.
set -eu
cache="${XDG_CACHE_HOME:-$HOME/.cache}/llmtrain"
lock="$(dirname "$0")/../requirements/bootstrap.txt"
key="$(sha256sum "$lock" | cut -c1-16)"
home="$cache/bootstrap/$key"
python="${PYTHON:-python3}"

if [ ! -x "$home/bin/uv" ]; then
    echo "bootstrap: installing uv (once)" >&2
    mkdir -p "$cache/bootstrap"
    draft="$(mktemp -d "$cache/bootstrap/draft.XXXXXX")"
    trap 'rm -rf "$draft"' EXIT
    if "$python" -m venv "$draft/venv" >/dev/null 2>&1; then
        "$draft/venv/bin/python" -m pip install --quiet --no-deps --require-hashes --target "$draft/lib" -r "$lock" >&2
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --no-deps --require-hashes --target "$draft/lib" -r "$lock" >&2
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip >&2
        "$python" -m pip install --quiet --no-deps --require-hashes --target "$draft/lib" -r "$lock" >&2
    else
        echo "bootstrap: python3 has neither venv nor pip; install python3-venv and try again" >&2
        exit 1
    fi
    rm -rf "$draft/venv"
    # Another clone may have been faster; either copy is good.
    mv -T "$draft/lib" "$home" 2>/dev/null || [ -x "$home/bin/uv" ]
fi
echo "$home/bin/uv"
