"""Train a small BERT on a real text task, quantize it statically and dynamically with at most 1 % loss of F1, save it and load it back.

The task: is a line of Python sources prose (a comment, a docstring) or code? The model sees its words only, without the punctuation.
Nothing is downloaded: the data lies beside this file, the model starts from a configuration.

    pip install "neural-tune[transformers]"
    python examples/transformers_text/run.py
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.metrics import f1_score

from neural_tune import PerformanceConfig
from neural_tune_pytorch.transformers import NLPTrainer, QuantizationConfig, load_quantized, metrics, objectives

DATA = Path(__file__).parent / "data" / "lines.tsv"
LENGTH = 24
CLASSES = ("code", "prose")
PAD, UNKNOWN, START = 0, 1, 2


class Lines(torch.utils.data.Dataset[dict[str, Any]]):
    """Lines as token ids."""

    def __init__(self, rows: list[tuple[str, list[str]]], vocabulary: dict[str, int]) -> None:
        self.rows = rows
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        label, words = self.rows[place]
        ids = [START, *(self.vocabulary.get(word, UNKNOWN) for word in words)][:LENGTH]
        padding = LENGTH - len(ids)
        return {
            "input_ids": torch.tensor(ids + [PAD] * padding),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * padding),
            "labels": torch.tensor(CLASSES.index(label)),
        }


def read() -> tuple[Lines, Lines]:
    """Return training and evaluation lines; every fourth line is for evaluation."""
    rows = []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        label, text = line.split("\t", 1)
        rows.append((label, re.findall(r"[a-z]+", text.lower())))
    training = [row for place, row in enumerate(rows) if place % 4]
    evaluation = [row for place, row in enumerate(rows) if place % 4 == 0]
    common = Counter(word for _, words in training for word in words).most_common(1500)
    vocabulary = {word: number for number, (word, _) in enumerate(common, START + 1)}
    return Lines(training, vocabulary), Lines(evaluation, vocabulary)


def compute_metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
    return {"f1": f1_score(prediction.label_ids, np.argmax(prediction.predictions, axis=-1))}


def train(epochs: float, folder: Path) -> NLPTrainer:
    """Return a trainer whose model is trained."""
    training, evaluation = read()
    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=START + 1 + 1500,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=LENGTH,
            num_labels=len(CLASSES),
        )
    )
    trainer = NLPTrainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder / "training"),
            num_train_epochs=epochs,
            learning_rate=1e-3,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=100,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=training,
        eval_dataset=evaluation,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, default=Path("transformers_text"))
    arguments = parser.parse_args()
    trainer = train(arguments.epochs, arguments.folder)
    original = trainer.model
    print(f"float: F1 {trainer.evaluate()['eval_f1']:.4f}")
    for approach in ("PostTrainingStatic", "PostTrainingDynamic"):
        trainer.model = trainer.model_wrapped = original
        trainer.quantize(
            QuantizationConfig(
                approach=approach,
                metrics=[metrics.Metric(name="eval_f1", greater_is_better=True, is_relative=True, criterion=0.01)],
                objectives=[objectives.performance],
                performance=PerformanceConfig(batch_size=8),
                workspace=str(arguments.folder / "nt_workspace"),
            )
        )
        if not trainer.tuning.accepted:
            raise SystemExit(f"{approach}: {trainer.tuning.reason}")
        target = arguments.folder / approach
        trainer.save_model(str(target))
        trainer.model = trainer.model_wrapped = load_quantized(target)
        print(f"{approach}: F1 {trainer.evaluate()['eval_f1']:.4f} after loading from {target}")


if __name__ == "__main__":
    main()
