"""Compose the demo pictures from MNIST test digits: `python -m xgen_mm.cli.demo_pictures [MNIST_DIR]`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ..tiny.digits import GlyphBank, draw_picture
from ..tiny.mnist import DEFAULT_DIR, read_mnist

PICTURE_DIR = Path(__file__).parent / "demo_images"
# Number and seed of each picture. The seeds were picked for a variety of shapes, before any model saw the pictures.
PICTURES = ((407, 1), (392, 0), (86, 6), (9254, 2))


def write_pictures(mnist: Path, directory: Path) -> list[Path]:
    """Write one grey PNG per entry of `PICTURES`, named after its number.

    Args:
        mnist: Holds the MNIST files; only the test split is used.
        directory: Where the files go.
    """
    bank = GlyphBank(*read_mnist(mnist, "test"))
    paths = []
    for number, seed in PICTURES:
        digits = tuple(int(digit) for digit in str(number))
        picture = draw_picture(np.random.default_rng([number, seed]), bank, digits)
        paths.append(directory / f"{number}.png")
        Image.fromarray(picture.pixels).save(paths[-1], optimize=True)
    return paths


if __name__ == "__main__":
    write_pictures(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DIR, PICTURE_DIR)
