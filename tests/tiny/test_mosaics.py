"""Warm-up tiles."""

import numpy as np

from xgen_mm.tiny.mosaics import MosaicMaker


def test_mosaic_draw_labels_digits_and_paper(drawn_digits: tuple[np.ndarray, np.ndarray]) -> None:
    maker = MosaicMaker(*drawn_digits)
    rng = np.random.default_rng(0)
    drawn = [maker.draw(rng, tile_size=84, num_patches=7, scale=(0.15, 0.6)) for _ in range(60)]
    assert all(tile.shape == (84, 84) and tile.dtype == np.uint8 for tile, _ in drawn)
    assert set(np.concatenate([labels for _, labels in drawn])) == set(range(11))


def test_mosaic_draw_same_seed_gives_same_tile(drawn_digits: tuple[np.ndarray, np.ndarray]) -> None:
    maker = MosaicMaker(*drawn_digits)
    first, second = (
        maker.draw(np.random.default_rng(1), tile_size=84, num_patches=7, scale=(0.2, 0.5)) for _ in range(2)
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
