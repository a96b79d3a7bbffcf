"""Build the images: `python -m llmtrain_images [--only operator] [--variant cuda]`.

For each image it writes `NAME.cdx.json`, the software bill of materials, into the output folder,
and with --save also `NAME.tar.gz` for `docker load`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from llmtrain_devcluster.go_build.tools import print_progress
from llmtrain_images.base import BaseError
from llmtrain_images.build import VARIANTS, build_operator, build_trainer, save
from llmtrain_images.contents import bill_of_materials, describe_parts, read_contents
from llmtrain_images.debian import DebianError
from llmtrain_images.docker_engine import DockerEngine, EngineError, docker_engine
from llmtrain_images.wheels import WheelError

IMAGES = ("operator", "trainer")
MIB = 1 << 20


def main() -> int:
    """Build the images and print the sizes of their parts."""
    parser = argparse.ArgumentParser(prog="llmtrain_images", description=__doc__)
    parser.add_argument("--only", choices=IMAGES, help="build one image")
    parser.add_argument("--variant", choices=VARIANTS, default="cpu", help="of the trainer")
    parser.add_argument("--to", type=Path, default=Path("dist/images"), help="output folder")
    parser.add_argument("--save", action="store_true", help="also write the images")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    try:
        with docker_engine(print_progress) as engine:
            for name in [arguments.only] if arguments.only else IMAGES:
                if name == "operator":
                    image = build_operator(engine, print_progress)
                else:
                    image = build_trainer(engine, print_progress, arguments.variant)
                _write(engine, image, arguments.to / name, arguments.save)
    except (BaseError, DebianError, EngineError, WheelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _write(engine: DockerEngine, image: str, target: Path, archive: bool) -> None:
    contents = read_contents(engine, image)
    bill = json.dumps(bill_of_materials(image, contents), indent=1)
    target.with_suffix(".cdx.json").write_text(bill + "\n")
    print(f"\n{image}")
    for part, size in describe_parts(contents):
        print(f"{size / MIB:9.1f} MiB  {part}")
    if archive:
        size = save(engine, image, target.with_suffix(".tar.gz"))
        print(f"{size / MIB:9.1f} MiB  gzipped")


if __name__ == "__main__":
    sys.exit(main())
