"""Draw all dashboards of a folder to PNG files."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmtrain_pictures.bundle import build_page
from llmtrain_pictures.chromium import Picture, browser
from llmtrain_pictures.page_server import page_server

WIDTH = 1600


def draw(dashboards: Path, prometheus: str, folder: Path, *, seconds: int) -> dict[str, Picture]:
    """Write a picture of each dashboard over the last `seconds`; return them by name."""
    names = sorted(path.stem for path in dashboards.glob("*.json"))
    with page_server(build_page(), dashboards, prometheus) as address:
        pictures = asyncio.run(_pictures(address, names, seconds))
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture.png)
    return pictures


async def _pictures(address: str, names: list[str], seconds: int) -> dict[str, Picture]:
    async with browser() as opened:
        return {
            name: await opened.picture(
                f"{address}?dashboard={name}&span={seconds}&width={WIDTH}", WIDTH
            )
            for name in names
        }
