"""A training with Lightning as its tutorials write it. Lines of studyloom's end in `# +`."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from waiting import wait

from studyloom.extras.integrations.lightning import Report  # +


class Points(L.LightningDataModule):
    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(96, 4, generator=generator)
        parts = TensorDataset(points, (points.sum(1) > 0).long())
        self.train, self.valid, self.test = random_split(parts, [48, 24, 24], generator)

    def train_dataloader(self):
        return DataLoader(self.train, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.valid, 24)

    def test_dataloader(self):
        return DataLoader(self.test, 24)


class Classifier(L.LightningModule):
    def __init__(self, params):
        super().__init__()
        self.params = params
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def forward(self, points):
        return self.net(points)

    def training_step(self, batch, index):
        wait(self.trainer.current_epoch)
        points, labels = batch
        loss = nn.functional.cross_entropy(self.net(points), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        points, labels = batch
        outputs = self.net(points)
        # Finer than an accuracy of so few points.
        self.log("val/loss", nn.functional.cross_entropy(outputs, labels))
        self.log("val/accuracy", (outputs.argmax(1) == labels).float().mean())

    test_step = validation_step

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.params.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val/accuracy"},
        }


def build(config):
    return Classifier(config.params)


def train(config, run):
    module = Classifier(config.params)
    trainer = L.Trainer(
        max_epochs=config.params.epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[Report(run, "val/loss")],  # +
    )
    trainer.fit(module, Points(), ckpt_path=run.checkpoint)  # +
    return run.value  # +


def test(config, run, part):
    module = Classifier(config.params)
    run.keep(module=module)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (values,) = trainer.test(module, Points())
    return {"loss": values["val/loss"]}
