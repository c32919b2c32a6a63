"""Under Lightning, epoch e of training sees the draws of epoch e, after a resume too."""

import lightning as L
import pytest
import torch

from nvsubq.data import Digits

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # Lightning 2.6 with torch 2.13
]


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}

    def training_step(self, batch, index):
        self.seen[self.current_epoch, index] = batch[0].clone()
        return self.weight * 0

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, epochs, folder, checkpoint=None):
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return recorder.seen, trainer


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_are_numbered_and_resume(tmp_path, workers):
    def data():
        return Digits(batch_size=500, num_workers=workers)

    whole, _ = fit(data(), 3, tmp_path)
    plain = Digits(batch_size=500).train_dataloader()
    for epoch in range(3):
        plain.sampler.set_epoch(epoch)
        for index, (images, _) in enumerate(plain):
            assert torch.equal(whole[epoch, index], images)
    first, trainer = fit(data(), 1, tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    rest, _ = fit(data(), 3, tmp_path, tmp_path / "x.ckpt")
    assert {**first, **rest}.keys() == whole.keys()
    assert all(torch.equal(rest[key], whole[key]) for key in rest)
