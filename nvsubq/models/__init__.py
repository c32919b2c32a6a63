"""Backbones and dense models of N-dimensional mixers; 1-D, 2-D and 3-D are one code path."""

from nvsubq.models.backbone import NDBackbone
from nvsubq.models.cost import Cost, cost
from nvsubq.models.pretrained import from_pretrained, save_pretrained
from nvsubq.models.segmenter import NDSegmenter
from nvsubq.models.unet import NDUNet

__all__ = ["Cost", "NDBackbone", "NDSegmenter", "NDUNet", "cost", "from_pretrained", "save_pretrained"]
