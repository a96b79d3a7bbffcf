"""Section `data` of a job: sources, objective and tokenizer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Name, Rule, Uri, list_map


class DataSource(ApiModel):
    """One body of text."""

    name: Name
    """Name of the source, unique in the job."""
    uri: Uri
    """Where it is: file:///PATH, or package://PACKAGE/FOLDER for text inside a Python package."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Share of this source in the mix, relative to the others."""
    format: Literal[
        "auto",
        "text",
        "jsonl",
        "parquet",
        "warc",
        "mediawiki",
        "stackexchange",
        "latex",
        "code",
        "tokens",
    ] = "auto"
    """What its files hold; auto goes by their names. Source code and prepared tokens are named."""
    filter: Literal["auto", "none", "gopher"] = "auto"
    """Quality rules: none, or those of Gopher (arXiv:2112.11446); auto applies them to warc."""


class Tokenizer(ApiModel):
    """How text becomes tokens. Absent: a byte-level BPE trained on the job's own text."""

    uri: Uri | None = None
    """A tokenizer.json to use as it is."""


class Chat(ApiModel):
    """How a conversation becomes text: exactly one of preset and template."""

    preset: Literal["plain", "chatml", "llama3"] | None = None
    """A template by name; plain puts messages on lines of their own and needs no special tokens."""
    template: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """A Jinja template over `messages`, as tokenizers bring it along."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.preset) != has(self.template)",
            "set exactly one of preset and template",
            holds=lambda self: (self.preset is None) != (self.template is None),
        ),
    )


class Data(ApiModel):
    """What to learn from."""

    objective: Literal["pretrain", "sft"] = "pretrain"
    """Next-token pre-training, or supervised fine-tuning: sources are JSON lines of prompt and
    response, or of messages with role and content, and only responses count in the loss."""
    chat: Chat | None = None
    """How a conversation becomes text, for sft. Absent: the template beside the tokenizer, else
    plain."""
    sources: Annotated[
        list[DataSource],
        Field(min_length=1, max_length=64),
        list_map("name"),
    ]
    """Bodies of text, identified by name."""
    tokenizer: Tokenizer | None = None
    """How text becomes tokens."""
    held_out_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of whole documents kept back to measure held-out loss."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.chat) || self.objective == 'sft'",
            "only for objective sft",
            ".chat",
            lambda self: self.chat is None or self.objective == "sft",
        ),
    )
