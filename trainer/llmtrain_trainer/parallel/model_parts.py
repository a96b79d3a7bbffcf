"""The part of the model that a pipeline rank holds, as one module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llmtrain_trainer.model.decoder import Decoder


class ModelParts(nn.Module):
    """The model chunks of one rank, with the parameter names of the whole model.

    It is never called: a schedule runs the chunks one by one. The optimizer and checkpoints use it,
    and must not depend on the number of chunks. A tied embedding has one name. Its copy in the last
    stage has none (`llmtrain_trainer.parallel.tied`).
    """

    def __init__(self, chunks: Sequence[Decoder]) -> None:
        super().__init__()
        self.chunks = tuple(chunks)  # a tuple, so that the names get no prefix
        self.layers = nn.ModuleDict(
            {name: block for chunk in self.chunks for name, block in chunk.layers.items()}
        )
        for chunk in self.chunks:
            for name, end in chunk.named_children():
                tied = chunk.shape.tied_embeddings and name == "output"
                copied = chunk.stage.has_embedding_copy and name == "tok_embeddings"
                if name != "layers" and not tied and not copied:
                    self.add_module(name, end)
