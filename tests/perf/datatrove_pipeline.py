"""The preparation of `tests/perf/bench_data.py` with datatrove, in an environment of its own.

Arguments: folder with the JSON lines, tokenizer.json, folder for the results.
"""

from __future__ import annotations

import sys

from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found]
from datatrove.pipeline.dedup import (  # type: ignore[import-not-found]
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig  # type: ignore[import-not-found]
from datatrove.pipeline.filters import (  # type: ignore[import-not-found]
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
from datatrove.pipeline.tokens import DocumentTokenizer  # type: ignore[import-not-found]
from datatrove.pipeline.writers import JsonlWriter  # type: ignore[import-not-found]
from datatrove.utils.word_tokenizers import WordTokenizer  # type: ignore[import-not-found]


class Words(WordTokenizer):  # type: ignore[misc]
    """Words between white space, as the rules of llmtrain have them.

    The one of datatrove for English is spaCy, which takes several times as long.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the sentences of a text. Nothing here needs them."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return the places of sentences. Nothing here needs them."""
        raise NotImplementedError


def main(source: str, tokenizer: str, target: str) -> None:
    """Filter, find near duplicates with its defaults (14 buckets of 8 hashes), tokenize."""
    config, words = MinhashConfig(), Words()
    steps = [
        [
            JsonlReader(source),
            GopherRepetitionFilter(language=words),
            GopherQualityFilter(language=words),
            JsonlWriter(f"{target}/filtered", compression=None),
        ],
        [
            JsonlReader(f"{target}/filtered"),
            MinhashDedupSignature(f"{target}/signatures", config=config, language=words),
        ],
        [MinhashDedupBuckets(f"{target}/signatures", f"{target}/buckets", config=config)],
        [MinhashDedupCluster(f"{target}/buckets", f"{target}/removed", config=config)],
        [
            JsonlReader(f"{target}/filtered"),
            MinhashDedupFilter(f"{target}/removed"),
            DocumentTokenizer(f"{target}/tokens", tokenizer, eos_token="<|endoftext|>"),
        ],
    ]
    for number, pipeline in enumerate(steps):
        tasks = config.num_buckets if number == 2 else 1
        logs = f"{target}/logs/{number}"
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
