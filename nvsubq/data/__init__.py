"""Data sets as LightningDataModules, with deterministic splits and draws."""

from nvsubq.data.base import DataModule
from nvsubq.data.digits import Digits, MNIST5k
from nvsubq.data.epi import EPI
from nvsubq.data.errors import DataError
from nvsubq.data.image_folder import ImageFolder
from nvsubq.data.mni152 import MNI152
from nvsubq.data.nifti_folder import NiftiFolder
from nvsubq.data.ocean import SeaSurface
from nvsubq.data.recall import SpatialRecall
from nvsubq.data.sample import Sample
from nvsubq.data.textures import TextureRotation

__all__ = [
    "EPI",
    "MNI152",
    "DataError",
    "DataModule",
    "Digits",
    "ImageFolder",
    "MNIST5k",
    "NiftiFolder",
    "Sample",
    "SeaSurface",
    "SpatialRecall",
    "TextureRotation",
]
