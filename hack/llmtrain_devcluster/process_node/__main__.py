"""Run the agent as a program."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.process_node.agent import Agent
from llmtrain_devcluster.process_node.settings import AgentSettings
from llmtrain_devcluster.processes import adopt_orphans


async def main(path: Path) -> None:
    """Run the agent until SIGTERM or SIGINT."""
    settings = AgentSettings.read(path)
    async with Api(settings.server, settings.token, Path(settings.ca_file)) as api:
        work = asyncio.create_task(Agent(settings, api).run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        await asyncio.gather(work, return_exceptions=True)
        if not work.cancelled():
            work.result()


if __name__ == "__main__":
    adopt_orphans()
    asyncio.run(main(Path(sys.argv[1])))
