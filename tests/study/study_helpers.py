"""A study of seconds: short signals, narrow models, two steps."""

from __future__ import annotations

TINY = (
    "steps=2",
    "parameters=2000",
    "cores=[rglru,s5]",
    "spatial_dims=[1]",
    "tasks=[simple_copy]",
    "seeds=[0,1]",
    "rates=[1e-3,1e-2]",
    "choose_on.spatial_dims=1",
    "overrides.spatial_dims.1=['data.canvas=[80]']",
    "overrides.all=['data.item=4','data.batch_size=4','data.eval_batch_size=4','data.val_items=4',"
    "'data.test_items=8','model.depths=[1]','model.head_channels=4','trainer.limit_val_batches=1','trainer.limit_train_batches=2']",
)
