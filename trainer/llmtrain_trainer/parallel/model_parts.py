"""All that a pipeline rank holds of the model as one module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llmtrain_trainer.model.decoder import Decoder


class ModelParts(nn.Module):
    """The chunks of one rank under the names that their parameters have in the whole model.

    Never called as a whole: a schedule runs the chunks one by one. It is what optimizer and
    checkpoints see, for which the number of chunks must not matter. A tied embedding has one
    name, and the copy of it in the last stage none (`llmtrain_trainer.parallel.tied`).
    """

    def __init__(self, chunks: Sequence[Decoder]) -> None:
        super().__init__()
        self.chunks = tuple(chunks)  # a tuple, so that no name gets a prefix
        self.layers = nn.ModuleDict(
            {name: block for chunk in self.chunks for name, block in chunk.layers.items()}
        )
        for chunk in self.chunks:
            for name, end in chunk.named_children():
                tied = chunk.shape.tied_embeddings and name == "output"
                copied = chunk.stage.has_embedding_copy and name == "tok_embeddings"
                if name != "layers" and not tied and not copied:
                    self.add_module(name, end)
