"""What simple methods reach on the same split, printed beside every score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

Volumes = Sequence[tuple[np.ndarray, np.ndarray]]


def pixel_classifiers(
    train_pixels: Tensor, train_labels: Tensor, test_pixels: Tensor, test_labels: Tensor
) -> dict[str, dict[str, float]]:
    """Test accuracy of 3 nearest neighbours and of an RBF support vector machine on pixels.

    Args:
        train_pixels, test_pixels: `[N, C, H, W]` uint8.
        train_labels, test_labels: `[N]`.

    Returns:
        name -> {"accuracy": share in [0, 1]}.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    x_train, x_test = (p.flatten(1).numpy().astype(np.float32) / 255 for p in (train_pixels, test_pixels))
    y_train, y_test = train_labels.numpy(), test_labels.numpy()
    methods = {
        "3 nearest neighbours": KNeighborsClassifier(3, algorithm="brute"),
        "support vector machine": SVC(C=10.0, kernel="rbf", gamma="scale"),
    }
    return {
        name: {"accuracy": float((method.fit(x_train, y_train).predict(x_test) == y_test).mean())}
        for name, method in methods.items()
    }


class IntensityHistogram:
    """Labels a voxel by its intensity alone: the class most often seen in its bin of the training histogram.

    Args:
        num_classes: number of labels.
        low, high: range of the bins; what lies outside belongs to the outermost ones.
        bins: number of bins.

    Example:
        >>> histogram = IntensityHistogram(2, 0.0, 1.0, bins=4)
        >>> histogram.fit([(np.array([0.1, 0.9]), np.array([0, 1]))]).predict(np.array([0.05, 0.8]))
        array([0, 1])
    """

    def __init__(self, num_classes: int, low: float, high: float, bins: int = 256) -> None:
        self.num_classes, self.low, self.high, self.bins = num_classes, low, high, bins
        self.table = np.zeros(bins, dtype=np.int64)

    def _bin(self, image: np.ndarray) -> np.ndarray:
        place = (image - self.low) * (self.bins / (self.high - self.low))
        return np.clip(place, 0, self.bins - 1).astype(np.int64)

    def fit(self, volumes: Volumes) -> IntensityHistogram:
        """Counts labels in every bin over pairs of image and labels of one shape."""
        size = self.bins * self.num_classes
        flat = np.zeros(size, dtype=np.int64)
        for image, labels in volumes:
            flat += np.bincount((self._bin(image) * self.num_classes + labels).ravel(), minlength=size)
        counts = flat.reshape(self.bins, self.num_classes)
        # An empty bin takes the table of the nearest bin that was seen.
        seen = np.flatnonzero(counts.sum(1))
        nearest = seen[np.abs(np.arange(self.bins)[:, None] - seen).argmin(1)]
        self.table = counts.argmax(1)[nearest]
        return self

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Labels of the image's shape."""
        return self.table[self._bin(image)]


def dice_scores(
    predict: Callable[[np.ndarray], np.ndarray], volumes: Volumes, scored: dict[str, int]
) -> dict[str, float]:
    """Dice of each scored class over all voxels of all volumes together, and their mean.

    Args:
        predict: image -> labels.
        volumes: pairs of image and labels.
        scored: name -> class.

    Returns:
        `dice_NAME` of every class that occurs or is predicted, and their mean `dice`.
    """
    overlap, total = np.zeros(len(scored)), np.zeros(len(scored))
    for image, labels in volumes:
        guess = predict(image)
        for k, label in enumerate(scored.values()):
            a, b = guess == label, labels == label
            overlap[k] += np.count_nonzero(a & b)
            total[k] += np.count_nonzero(a) + np.count_nonzero(b)
    names = [f"dice_{name.replace(' ', '_').replace('/', '_')}" for name in scored]
    dice = {name: float(2 * o / t) for name, o, t in zip(names, overlap, total, strict=True) if t}
    return {"dice": float(np.mean(list(dice.values())))} | dice if dice else {}


def histogram_baselines(
    train: Volumes,
    val: Volumes,
    test: Volumes,
    *,
    num_classes: int,
    scored: dict[str, int],
    sigmas: Sequence[float],
) -> dict[str, dict[str, float]]:
    """Test Dice of a histogram of single intensities, and of one after the best Gaussian filter.

    Both are fitted on `train`; the filter's width is the one of `sigmas` (in voxels) that is best on `val`.

    Returns:
        name -> metric -> value; "smoothed histogram" only where `sigmas` are given.
    """
    from scipy.ndimage import gaussian_filter

    low, high = min(float(x.min()) for x, _ in train), max(float(x.max()) for x, _ in train)

    def fitted(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
        def smooth(image: np.ndarray) -> np.ndarray:
            return gaussian_filter(image, sigma) if sigma else image

        histogram = IntensityHistogram(num_classes, low, high).fit([(smooth(x), y) for x, y in train])
        return lambda image: histogram.predict(smooth(image))

    results = {"intensity histogram": dice_scores(fitted(0.0), test, scored)}
    if sigmas:
        methods = [fitted(sigma) for sigma in sigmas]
        best = max(methods, key=lambda method: dice_scores(method, val, scored).get("dice", 0.0))
        results["smoothed histogram"] = dice_scores(best, test, scored)
    return results
