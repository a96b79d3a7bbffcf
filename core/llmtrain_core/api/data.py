"""Section `data` of a job: sources, objective and tokenizer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel, Name, Rule, Uri, list_map, list_set

Language = Annotated[str, Field(min_length=2, max_length=3, pattern="^[a-z]+$")]


class DataSource(ApiModel):
    """A source of training text."""

    name: Name
    """Name of the source. Must be unique in the job."""
    uri: Uri
    """Location: file:///PATH, or package://PACKAGE/FOLDER for files of a Python package."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of this source in the data mix, relative to the other sources."""
    format: Literal[
        "auto",
        "text",
        "html",
        "jsonl",
        "csv",
        "parquet",
        "warc",
        "mediawiki",
        "stackexchange",
        "latex",
        "code",
        "tokens",
    ] = "auto"
    """File format. auto detects it by content and file name, except code and tokens, which must be
    set."""
    filter: Literal["auto", "none", "gopher"] = "auto"
    """Quality filter: none, or gopher (arXiv:2112.11446). auto applies gopher to warc only."""
    charset: (
        Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9:_.()+-]+$")] | None
    ) = None
    """Character set of text files without a byte order mark, by its WHATWG label. By default, files
    are UTF-8 if they are valid as such, else windows-1252."""
    languages: Annotated[list[Language], Field(min_length=1, max_length=64), list_set()] | None = (
        None
    )
    """Languages to keep, as ISO 639 codes such as en. By default, all languages are kept."""
    cleaning: Literal["none", "web"] = "none"
    """Cleaning of white space. none keeps all of it. web makes single spaces and at most one empty
    line of it, removes control characters, and applies NFC."""
    max_unusable_rows: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of rows (JSON lines, CSV, Parquet) that may be left out because they cannot be
    used. More of them end the preparation."""
    near_duplicates: Literal["remove", "keep"] = "remove"
    """Near duplicates: remove all but one document of each group, or keep them. Of equal documents,
    one is kept in any case."""
    similarity: Annotated[float, Field(ge=0.8, lt=1)] = 0.8
    """Share of common runs of 5 words (Jaccard index) from which on two documents are near
    duplicates, with a probability of at least 0.9."""
    documents: Literal["auto", "blank-line", "line", "separator", "file"] = "auto"
    """End of a document in text: a blank line, a line, a separator, or the file. auto detects the
    separator. A file among others is then one document. If it is the only one, its documents are
    lines, if they look like documents, or runs of paragraphs."""
    separator: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Text between two documents, for documents: separator. Defaults to <|endoftext|>."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.separator) || self.documents == 'separator'",
            "only for documents: separator",
            ".separator",
            lambda self: self.separator is None or self.documents == "separator",
        ),
    )


class Tokenizer(ApiModel):
    """Tokenizer. When absent, a byte-level BPE tokenizer is trained on the sources of the job."""

    uri: Uri | None = None
    """Location of a tokenizer.json to use unchanged."""


class Chat(ApiModel):
    """Chat template. Exactly one of preset and template must be set."""

    preset: Literal["plain", "chatml", "llama3"] | None = None
    """Name of a template. plain writes one message per line and needs no special tokens."""
    template: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """Jinja template over `messages`, in the format of tokenizer_config.json."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.preset) != has(self.template)",
            "set exactly one of preset and template",
            "",
            lambda self: (self.preset is None) != (self.template is None),
        ),
    )


class Data(ApiModel):
    """Training data."""

    objective: Literal["pretrain", "sft"] = "pretrain"
    """Training objective: pretrain (next-token prediction) or sft (supervised fine-tuning). With
    sft, sources are rows with prompt and response, or with messages that have role and content, and
    the loss includes responses only."""
    chat: Chat | None = None
    """Chat template for objective sft. Defaults to the template next to the tokenizer, or to plain
    if there is none."""
    sources: Annotated[
        list[DataSource],
        Field(min_length=1, max_length=64),
        list_map("name"),
    ]
    """Sources of training text, identified by name."""
    tokenizer: Tokenizer | None = None
    """Tokenizer."""
    overlong: Literal["drop", "truncate"] = "drop"
    """Examples of objective sft that are longer than a sequence: leave them out, or cut the end."""
    packing: bool | None = None
    """Put several examples of objective sft into one sequence; attention and positions stay inside
    each example. Enabled by default, unless the job resumes from a checkpoint that was written
    without. false pads each example to a sequence."""
    attention: Literal["packed", "document"] | None = None
    """Attention of objective pretrain: packed (to all earlier tokens of the sequence) or document
    (to those of the same document, in which positions start at 0). Defaults to packed."""
    held_out_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of whole documents that are held out for evaluation."""

    @property
    def divides_documents(self) -> bool:
        """Attention and positions stay inside documents, or inside packed examples."""
        if self.objective == "sft":
            return self.packing is not False
        return self.attention == "document"

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.chat) || self.objective == 'sft'",
            "only for objective sft",
            ".chat",
            lambda self: self.chat is None or self.objective == "sft",
        ),
        Rule(
            "!has(self.packing) || self.objective == 'sft'",
            "only for objective sft; pretrain packs documents always",
            ".packing",
            lambda self: self.packing is None or self.objective == "sft",
        ),
        Rule(
            "!has(self.attention) || self.objective == 'pretrain'",
            "only for objective pretrain; sft keeps attention inside examples",
            ".attention",
            lambda self: self.attention is None or self.objective == "pretrain",
        ),
    )
