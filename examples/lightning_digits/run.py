"""Train a small convolutional net with Lightning, quantize it with `trainer.validate` as the judge, put it back and validate again.

The data are scikit-learn's handwritten digits; nothing is downloaded.

    pip install "neural-tune[lightning]"
    python examples/lightning_digits/run.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neural_tune
from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig


class Digits(lightning.LightningModule):
    """A classifier; the network that is quantized is its `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Any, _: int) -> None:
        images, labels = batch
        hits = (self.model(images).argmax(dim=1) == labels).float().mean()
        self.log("accuracy", hits, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return training and validation batches; every third image validates."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 3 == 0
    training = TensorDataset(images[~held_out], labels[~held_out])
    validation = TensorDataset(images[held_out], labels[held_out])
    return DataLoader(training, batch_size=32, shuffle=True), DataLoader(validation, batch_size=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("lightning_digits"))
    arguments = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    training, validation = loaders()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs, accelerator="cpu", default_root_dir=arguments.folder, **quiet
    )
    module = Digits()
    trainer.fit(module, training)

    original = module.model

    def accuracy(model: nn.Module) -> float:
        """Validate with `model` in the place of the float network."""
        module.model = model
        try:
            return float(trainer.validate(module, validation, verbose=False)[0]["accuracy"])
        finally:
            module.model = original

    result = neural_tune.fit(
        module.model,
        PostTrainingQuantConfig(
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
            performance=PerformanceConfig(batch_size=50),
            workspace=str(arguments.folder / "nt_workspace"),
        ),
        calib_dataloader=training,
        eval_func=accuracy,
    )
    target = arguments.folder / "int8"
    result.save(target)
    module.model = neural_tune.load(target)  # the tuned network takes its place in the LightningModule
    found = trainer.validate(module, validation, verbose=False)[0]["accuracy"]
    print(f"float: accuracy {accuracy(original):.4f}; int8, loaded from {target}: {found:.4f}")


if __name__ == "__main__":
    main()
