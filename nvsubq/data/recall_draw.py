"""What is drawn on a canvas of spatial recall: items, frames, the mark of the target, and the answer."""

from __future__ import annotations

import numpy as np

from nvsubq.data.recall_layout import Layout

CHANNELS = {
    "simple_copy": (1, 1),
    "mask_selection": (2, 1),
    "color_selection": (3, 1),
    "color_conditioning": (3, 3),
}
"""recall -> channels of the input and of the answer."""

RECALLS = tuple(CHANNELS)
COLOURS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]],
    dtype=np.float32,
)


class Drawing:
    """Draws a canvas and its answer.

    Args:
        layout: canvas, item and readout.
        recall: one of `RECALLS`.
        items: items on a canvas, where there is something to select.
        place: the item's corner in "simple_copy".
        readout_value: what the input holds in the readout region.
    """

    def __init__(
        self, layout: Layout, recall: str, *, items: int, place: tuple[int, ...], readout_value: int
    ) -> None:
        self.layout, self.recall, self.items = layout, recall, items
        self.place, self.readout_value = place, readout_value
        # An item in a frame keeps its inner cells: the frame is drawn over its border.
        self.inner = np.zeros((layout.side, layout.side), dtype=bool)
        self.inner[1:-1, 1:-1] = True

    def draw(
        self, digits: np.ndarray, index: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The canvas `[C, *canvas]` whose target is digit `index`, and its answer `[K, *item]`, float32.

        Args:
            digits: `[N, side, side]`, of which the other items are drawn.
            index: of the target.
            random: where places, other items and colours come from.
        """
        channels, _ = CHANNELS[self.recall]
        canvas = np.zeros((channels, *self.layout.canvas), dtype=np.float32)
        target = digits[index]
        if self.recall == "simple_copy":
            self._put(canvas[:1], self.place, target[None])
            self._put(canvas, self.layout.last, self._blank(1))
            return canvas, self._item(target[None])
        places = self.layout.places(self.items, random)
        others = digits[random.integers(0, len(digits), self.items - 1)]
        shown = np.concatenate([target[None], others])
        if self.recall == "mask_selection":
            for place, digit in zip(places, shown, strict=True):
                self._put(canvas[:1], place, digit[None])
            self._put(canvas[:1], self.layout.last, self._blank(1))
            self._put(canvas[1:], places[0], np.ones((1, self.layout.side, self.layout.side)))
            return canvas, self._item(target[None])
        colours = COLOURS[random.permutation(len(COLOURS))[: self.items]]
        for place, digit, colour in zip(places, shown, colours, strict=True):
            self._put(canvas, place, self._framed(digit[None], colour))
        self._put(canvas, self.layout.last, self._framed(self._blank(1), colours[0]))
        tint = colours[0] if self.recall == "color_conditioning" else np.ones(1, dtype=np.float32)
        return canvas, self._item(tint[:, None, None] * np.where(self.inner, target, 0))

    def _blank(self, channels: int) -> np.ndarray:
        """The readout region of the input, `[C, side, side]`."""
        return np.full((channels, self.layout.side, self.layout.side), self.readout_value, dtype=np.float32)

    def _framed(self, digit: np.ndarray, colour: np.ndarray) -> np.ndarray:
        """`[3, side, side]`: a grey item `[1, side, side]` in a frame of one cell."""
        return np.where(self.inner, digit, colour[:, None, None])

    def _item(self, image: np.ndarray) -> np.ndarray:
        """`[K, side, side]` in the shape of an item of this rank."""
        return np.ascontiguousarray(image.reshape(len(image), *self.layout.item), dtype=np.float32)

    def _put(self, canvas: np.ndarray, corner: tuple[int, ...], image: np.ndarray) -> None:
        canvas[(slice(None), *self.layout.at(corner))] = self._item(image)
