#!/bin/sh
# Install packages into /opt/llmtrain with these arguments of pip; after `--root FOLDER`, below FOLDER.
# /opt/llmtrain is a link to a folder below /packages, the files of a layer. Bytecode is made here,
# because a container cannot write any. All files get one time.
set -eu
root=/packages
[ "$1" = --root ] && root=$2
/opt/builder/bin/pip --python /opt/llmtrain/bin/python install --quiet --no-deps --no-compile "$@"
cd "$root/opt/llmtrain"
# Templates in some packages are not valid Python; compileall reports them as errors. Of the two
# thousand models of the Kubernetes client, the operator imports four.
/opt/llmtrain/bin/python -m compileall -q -j 1 --invalidation-mode unchecked-hash \
    -p /opt/llmtrain -x 'kubernetes/(aio/)?client/(models|api)/(?!__init__)' lib \
    > /tmp/compileall || tail -n 3 /tmp/compileall
find "$root/opt" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
