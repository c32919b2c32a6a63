"""configs/data holds every option of every class with its default; baselines count what they should."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import nvsubq.data
from nvsubq.data.baselines import IntensityHistogram, dice_scores
from nvsubq.lazy_config import instantiate

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
CLASSES = {
    "digits": "Digits",
    "mnist5k": "MNIST5k",
    "mni152": "MNI152",
    "image_folder": "ImageFolder",
    "nifti_folder": "NiftiFolder",
    "spatial_recall": "SpatialRecall",
    "textures": "TextureRotation",
    "ocean": "SeaSurface",
    "epi": "EPI",
}


@pytest.mark.parametrize("name", CLASSES)
def test_config_holds_every_option_with_its_default(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    parameters = inspect.signature(getattr(nvsubq.data, CLASSES[name])).parameters
    plain = OmegaConf.to_container(config)
    assert plain.pop("_target_") == f"nvsubq.data.{CLASSES[name]}"
    assert plain.pop("seed") == "${seed}"
    assert plain.keys() == parameters.keys() - {"seed"}
    for key, value in plain.items():
        default = parameters[key].default
        expected = "???" if default is inspect.Parameter.empty else default
        assert value == (list(expected) if isinstance(expected, tuple) else expected), key


def test_every_class_has_a_config():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == CLASSES.keys()


def test_configs_build():
    config = OmegaConf.create({"seed": 3, "data": OmegaConf.load(CONFIGS / "digits.yaml")})
    assert instantiate(config.data).seed == 3


def test_public_names():
    assert set(nvsubq.data.__all__) == {*CLASSES.values(), "DataError", "DataModule", "Sample"}


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(nvsubq.data.__path__)])
def test_examples_of_docstrings(module):
    found = importlib.import_module(f"nvsubq.data.{module}")
    assert doctest.testmod(found, extraglobs={"np": np, "torch": __import__("torch")}).failed == 0


def test_histogram_takes_the_nearest_bin_for_unseen_intensities():
    histogram = IntensityHistogram(3, 0.0, 1.0, bins=10)
    histogram.fit([(np.array([0.05, 0.05, 0.55, 0.95]), np.array([1, 1, 0, 2]))])
    assert histogram.predict(np.array([-5.0, 0.2, 0.6, 0.9, 7.0])).tolist() == [1, 1, 0, 2, 2]


def test_dice_counts_voxels_of_all_volumes_together():
    volumes = [(np.array([1, 1, 0]), np.array([1, 0, 0])), (np.array([1, 0]), np.array([1, 1]))]
    assert dice_scores(lambda x: x, volumes, {"a b": 1}) == {"dice": 2 / 3, "dice_a_b": 2 / 3}
    assert dice_scores(lambda x: x, volumes, {"a": 1, "none": 2}) == {"dice": 2 / 3, "dice_a": 2 / 3}
    assert dice_scores(lambda x: x, volumes, {"none": 2}) == {}
