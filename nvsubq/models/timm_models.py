"""The 2-D presets as models of timm (the extra `timm`): importing this registers them.

import timm
import nvsubq.models.timm_models

model = timm.create_model("nvsubq_tiny", num_classes=10)
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from nvsubq.models.backbone import NDBackbone
from nvsubq.models.sizes import SIZES, preset_mixer

_CFG = {
    "url": "",  # no weights to fetch
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "patch_embed.convs.0.conv",
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({f"nvsubq_{name}.untrained": dict(_CFG) for name in SIZES})


def _backbone(
    in_chans: int = 3, num_classes: int = 1000, global_pool: str = "avg", mixer: Any = None, **options: Any
) -> NDBackbone:
    """An NDBackbone by timm's names of arguments."""
    given = {"mixer": preset_mixer(2) if mixer is None else mixer, "stem": "conv", "local_conv": 3, **options}
    return NDBackbone(2, in_chans, num_classes, global_pool=global_pool, **given)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    size = SIZES[name.removeprefix("nvsubq_")]
    if pretrained:
        raise ValueError(f"`pretrained` (={pretrained}) must be False: {name} has no weights to fetch.")
    given = {"depths": size.depths, "dims": size.dims, "drop_path_rate": size.drop_path_rate, **options}
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(_backbone, name, pretrained, feature_cfg=features, **given)


@register_model
def nvsubq_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """`NDBackbone` of 3.9 million parameters with Mamba; takes its keyword arguments."""
    return _create("nvsubq_tiny", pretrained, kwargs)


@register_model
def nvsubq_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """`NDBackbone` of 9.8 million parameters with Mamba; takes its keyword arguments."""
    return _create("nvsubq_small", pretrained, kwargs)


@register_model
def nvsubq_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """`NDBackbone` of 20.7 million parameters with Mamba; takes its keyword arguments."""
    return _create("nvsubq_base", pretrained, kwargs)
