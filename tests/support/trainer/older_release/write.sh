#!/bin/sh
# Write older.tar.xz with the release in the folder $1, and the Python with its dependencies.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$1/cli:$1/core:$1/trainer" OMP_NUM_THREADS=1
work=/tmp/older-release
mkdir "$work"
cd "$work"
python -c '
import json
with open("notes.jsonl", "w") as notes, open("talk.jsonl", "w") as talk:
    for n in range(60):
        words = [f"word{(n * 31 + i * i) % 97}" for i in range(30 + n % 20)]
        print(json.dumps({"text": "  ".join(words) + f"\n\n\n  and {n} times"}), file=notes)
        print(json.dumps({"prompt": f"say {n}  times", "response": f" {words[n % 30]}"}), file=talk)
'
llmtrain() { python -c 'from llmtrain_cli.main import app; app()' "$@"; }
llmtrain data prepare --to notes --source "notes=file://$work/notes.jsonl" --vocab-size 300 --held-out 0.1
sed 's|older-release/talk"|older-release/talk.jsonl"|' "$here/job.yaml" > prepare.yaml
llmtrain data prepare --to talk -f prepare.yaml
llmtrain run -f "$here/job.yaml" --output run
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cJf "$here/older.tar.xz" \
    notes talk -C run checkpoints/step-2
