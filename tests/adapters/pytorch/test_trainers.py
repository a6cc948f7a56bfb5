"""Hugging Face Trainer and Lightning: the two examples as their users run them, and the pieces on their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
transformers = pytest.importorskip("transformers", reason='needs pip install "neural-tune[transformers]"')

from neural_tune import ConfigError  # noqa: E402
from neural_tune_pytorch.transformers import Approach, QuantizationConfig, metrics, objectives  # noqa: E402
from neural_tune_pytorch.transformers.quantized import QuantizedModel, loss_of  # noqa: E402

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(script: Path, folder: Path, *arguments: str) -> str:
    """Run an example in a folder of its own, offline; return what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_trainer_example_quantizes_both_ways_within_1_percent_of_f1_and_reloads(tmp_path: Path) -> None:
    printed = run(EXAMPLES / "transformers_text" / "run.py", tmp_path, "--epochs", "1", "--folder", "here")
    before = float(re.findall(r"^float: F1 ([\d.]+)", printed, re.MULTILINE)[0])
    assert before > 0.85
    for approach in ("PostTrainingStatic", "PostTrainingDynamic"):
        after = float(re.findall(rf"^{approach}: F1 ([\d.]+)", printed, re.MULTILINE)[0])
        assert after >= before * 0.99
        saved = tmp_path / "here" / approach
        assert {"result.json", "recipe.yaml", "config.json"} <= {path.name for path in saved.iterdir()}
        result = json.loads((saved / "result.json").read_text())
        assert result["status"] == "accepted"
        assert sum(op["precision"] != "float" for op in result["ops"] if op["type"] == "linear") >= 12
        assert result["size_ratio"] > 1.5  # the text of the graph weighs much beside so small a model


@pytest.mark.slow
def test_the_lightning_example_validates_the_tuned_network_in_its_module(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason='needs pip install "neural-tune[lightning]"')
    printed = run(EXAMPLES / "lightning_digits" / "run.py", tmp_path, "--epochs", "2", "--folder", "here")
    before, after = re.findall(r"^float: accuracy ([\d.]+); int8, loaded from .*: ([\d.]+)", printed, re.MULTILINE)[0]
    assert float(before) > 0.9
    assert float(after) >= float(before) * 0.99


@pytest.mark.parametrize(
    ("logits", "labels", "head"),
    [
        (torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), {"num_labels": 3}),
        (torch.randn(6, 1), torch.randn(6), {"num_labels": 1}),
        (torch.randn(6, 4), torch.randint(0, 2, (6, 4)).float(), {"num_labels": 4, "problem_type": "multi_label_classification"}),
    ],
)  # fmt: skip
def test_the_loss_is_that_of_hugging_faces_own_heads(logits: Any, labels: Any, head: dict[str, Any]) -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8, vocab_size=4, **head
    )
    model = transformers.BertForSequenceClassification(config)
    expected = model.loss_function(labels=labels, pooled_logits=logits, config=config)
    assert torch.allclose(loss_of(logits, labels, config), expected)


def test_losses_of_accumulated_batches_add_up_to_that_of_one_large_batch() -> None:
    """As in Hugging Face's heads: a Trainer that passes the number of items does not divide by the accumulation steps itself."""
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, -100, 0, 1, 2])
    config = transformers.BertConfig(num_labels=3)
    parts = [loss_of(logits[rows], labels[rows], config, torch.tensor(5)) for rows in (slice(0, 2), slice(2, 6))]
    assert torch.allclose(sum(parts), loss_of(logits, labels, config))


def test_the_loss_of_tokens_leaves_out_what_is_masked() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, -100, 2], [-100, -100, 4]])
    kept = torch.stack([logits[0, 0], logits[0, 2], logits[1, 2]])
    expected = torch.nn.functional.cross_entropy(kept, torch.tensor([1, 2, 4]))
    assert torch.allclose(loss_of(logits, labels, transformers.BertConfig(num_labels=5)), expected)


def test_a_quantized_model_takes_labels_and_keeps_its_mode() -> None:
    class Inner(torch.nn.Module):
        def forward(self, input_ids: Any) -> Any:
            return {"logits": input_ids.float()}

    model = QuantizedModel(Inner(), transformers.BertConfig(num_labels=2))
    ids = torch.tensor([[1, 2], [3, 4]])
    assert set(model(input_ids=ids)) == {"logits"}
    found = model(input_ids=ids, labels=torch.tensor([0, 1]), num_items_in_batch=2)
    assert set(found) == {"loss", "logits"}
    assert model.train().training is False


def test_a_quantization_config_takes_the_names_of_intels() -> None:
    config = QuantizationConfig(
        framework="pytorch",
        approach="PostTrainingDynamic",
        timeout=0,
        max_trials=30,
        metrics=[
            metrics.Metric(name="eval_f1", greater_is_better=True, is_relative=False, criterion=0.02, weight_ratio=0.5)
        ],
        objectives=[objectives.performance, objectives.Objective("modelsize", weight_ratio=0.5)],
    )
    conf = config.to_conf(config.constrained).to_tune_config()
    assert (conf.approach, conf.stop.max_trials) == ("dynamic", 30)
    rule = conf.criterion.metrics["eval_f1"]
    assert (rule.criterion, rule.tolerable_loss, rule.higher_is_better) == ("absolute", 0.02, True)
    assert [item.name for item in conf.objectives.items] == ["latency", "size"]
    assert (
        QuantizationConfig(approach="QuantizationAwareTraining")
        .to_conf([metrics.Metric("x")])
        .to_tune_config()
        .approach
        == "qat"
    )
    assert QuantizationConfig(approach="static").approach is Approach.STATIC


@pytest.mark.parametrize(("field", "value"), [("approach", "PostTraining"), ("framework", "tensorflow")])
def test_a_quantization_config_refuses_what_it_does_not_know(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=field):
        QuantizationConfig(**{field: value})
