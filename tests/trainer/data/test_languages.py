"""A filter for English does not drop other languages; languages are chosen, and all are counted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.preparation.languages import UNDETERMINED, language_of
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.quality import gopher
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import read_manifest
from llmtrain_trainer.errors import InputError

PAGES = {
    "en": (
        "utf-8",
        "The old harbour lies at the mouth of a small river. In summer the fishermen leave before"
        " dawn and come back at noon with baskets full of herring. Their children sell the catch on"
        " the market square, where the baker and the smith have had their shops for many years."
        " When a storm comes up, everyone helps to pull the boats onto the beach.",
    ),
    "de": (
        "iso-8859-1",
        "Der alte Hafen liegt an der Mündung eines kleinen Flusses. Im Sommer fahren die Fischer"
        " vor Sonnenaufgang hinaus und kommen mittags mit vollen Körben zurück. Ihre Kinder"
        " verkaufen den Fang auf dem Marktplatz, wo Bäcker und Schmied seit Jahren ihre Läden"
        " haben. Zieht ein Sturm auf, so helfen alle Nachbarn, die Boote an den Strand zu ziehen"
        " und zu vertäuen.",
    ),
    "fr": (
        "windows-1252",
        "Le vieux port se trouve à l’embouchure d’une petite rivière. En été, les pêcheurs partent"
        " avant l’aube et reviennent à midi avec des paniers pleins de harengs. Leurs enfants"
        " vendent la pêche sur la place du marché, où le boulanger et le forgeron tiennent boutique"
        " depuis longtemps. Quand une tempête arrive, tout le monde aide à tirer les barques.",
    ),
    "ru": (
        "windows-1251",
        "Старая гавань лежит в устье небольшой реки. Летом рыбаки выходят в море до рассвета и"
        " возвращаются к полудню с полными корзинами сельди. Их дети продают улов на рыночной"
        " площади, где пекарь и кузнец уже много лет держат свои лавки. Когда надвигается буря, все"
        " соседи помогают вытащить лодки на берег и крепко привязать их к старым деревьям. Потом"
        " они вместе пьют чай и рассказывают детям истории о далёких странах и больших кораблях.",
    ),
    "zh": (
        "gb2312",
        "古老的港口位于一条小河的入海处。夏天,渔民们天亮以前出海,中午带着满满的鱼筐回来。他们的孩子"
        "在市场上卖鱼,面包师和铁匠多年来一直在那里开店。暴风雨来临的时候,大家都会帮忙把船拉到沙滩上,"
        "用绳子绑在老树旁边。晚上人们坐在一起喝茶,给孩子们讲遥远国家和大船的故事。",
    ),
}


def warc(to: Path) -> Path:
    """Write a crawl of five languages in as many character sets, and two variants of each page."""
    with to.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number in range(2):
            for code, (charset, text) in PAGES.items():
                kind = [("Content-Type", f"text/html; charset={charset}")]
                head = StatusAndHeaders("200 OK", kind, protocol="HTTP/1.1")
                half = text[len(text) // 8 :] if number else text
                page = f"<title>{code}</title><p>{half}".encode(charset, "replace")
                writer.write_record(
                    writer.create_warc_record(
                        "http://x.test/", "response", io.BytesIO(page), http_headers=head
                    )
                )
    return to


def counts(to: Path, **changes: Any) -> dict[str, Any]:
    source = Source("crawl", f"file://{warc(to / 'a.warc.gz')}", "s", **changes)
    plan = plan_preparation(DataConfig((source,), 0.1, 400, 0))
    run_share(Workspace(plan, to / "out"))
    facts: dict[str, Any] = read_manifest(to / "out")["sources"][0]
    return facts


@pytest.mark.parametrize("language", PAGES)
def test_the_language_of_a_page_and_its_rules(language: str) -> None:
    text = PAGES[language][1]
    assert language_of(text) == language
    assert gopher(text, language) is None
    assert gopher(text[:20], language) == "words"
    assert gopher(text + "\n" + "\n".join([text[:90]] * 9), language) == "duplicate-lines"


def test_text_without_words_has_no_language() -> None:
    assert language_of("1 + 2 = 3 · 4 ∑ ∂ →") == UNDETERMINED


def test_the_filter_of_a_crawl_keeps_every_language_and_counts_them(tmp_path: Path) -> None:
    facts = counts(tmp_path)
    assert facts["languages"] == dict.fromkeys(sorted(PAGES), 2)
    assert facts["documents"]["read"] == 10 and facts["documents"]["dropped"] == {}
    assert sum(facts["charsets"].values()) == 10 and len(facts["charsets"]) == 4


def test_chosen_languages_are_kept_and_the_others_are_counted(tmp_path: Path) -> None:
    facts = counts(tmp_path, languages=("de", "zh"))
    assert facts["documents"]["dropped"] == {"language en": 2, "language fr": 2, "language ru": 2}
    kept = ("train", "heldOut", "nearDuplicate")
    assert sum(facts["documents"][name] for name in kept) == 4


def test_a_language_that_cannot_be_detected_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="languages tlh cannot be detected") as caught:
        counts(tmp_path, languages=("en", "tlh"))
    assert "zh" in str(caught.value.remedy)
