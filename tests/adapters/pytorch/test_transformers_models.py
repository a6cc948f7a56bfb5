"""Hugging Face models built from a configuration go through PT2E: dict inputs, ModelOutput back, q/k/v as one choice, files a quarter of the size."""

from __future__ import annotations

import numpy as np
import pytest

from neural_tune import PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, fit
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, FrozenMap

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')
transformers = pytest.importorskip("transformers", reason='needs pip install "neural-tune[transformers]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import lowering  # noqa: E402


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    config = transformers.BertConfig(vocab_size=200, max_position_embeddings=64, num_labels=3, **sizes)
    return transformers.BertForSequenceClassification(config).eval()


def vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)
    return transformers.ViTForImageClassification(config).eval()


def tokens(rows=4, length=16, seed=1):
    generator = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int64)
    mask[0, length // 2 :] = 0
    return transformers.BatchEncoding(
        {
            "input_ids": torch.from_numpy(generator.integers(0, 200, (rows, length))),
            "attention_mask": torch.from_numpy(mask),
        }
    )


def pixels(seed=1):
    return {"pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize(("make", "batch", "linears"), [(bert, tokens, 14), (vit, pixels, 13)])
@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_models_from_a_configuration_are_quantized_and_answer_alike(tmp_path, make, batch, linears, approach):
    adapter, module = PyTorchAdapter(), make()
    options = AdapterOptions(approach=approach, example=batch(), extra=FrozenMap({"compile": False}))
    hold = adapter.load(module, options)
    space = TuningSpace.of(adapter.query(hold))
    anchors = [op for op in space.capability.ops if op.is_quantizable]
    assert sum(op.type == "linear" for op in anchors) == linears
    statistics = adapter.calibrate(hold, [batch(seed=seed) for seed in range(3)], tmp_path)
    built = adapter.build(hold, space.preferred(), statistics, None)
    float_size = adapter.size(adapter.build(hold, FLOAT_CANDIDATE, None, None))
    assert adapter.size(built) < float_size
    native = adapter.native(adapter.restore(adapter.save(built, tmp_path / "model")))
    inputs = batch(seed=9)
    with torch.no_grad():
        expected = module(**inputs)
    found = native(**inputs)
    assert type(found) is type(expected)
    error = (found.logits - expected.logits).norm() / expected.logits.norm()
    assert 0 < float(error) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("make", "batch", "approach"), [(bert, tokens, "dynamic"), (vit, pixels, "static")])
def test_fit_accepts_models_from_a_configuration_in_int8_kernels(tmp_path, make, batch, approach):
    """14 linears of BERT; 13 of ViT and the convolution over its patches. Logits of held-out inputs correlate with those of float by 0.99 at least."""
    if lowering.probe().problem:
        pytest.skip("torch.compile finds no C++ compiler here")
    module, inputs = make(), batch(seed=9)
    with torch.no_grad():
        expected = module(**inputs).logits.numpy()

    def correlation(candidate):
        return float(np.corrcoef(candidate(**inputs).logits.numpy().ravel(), expected.ravel())[0, 1])

    result = fit(
        module,
        PostTrainingQuantConfig(
            backend="pt2e",
            approach=approach,
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=2),
            performance=PerformanceConfig(threads=1, warmup=1, repeats=5, seconds=0.2),
            workspace=str(tmp_path),
        ),
        calib_dataloader=[batch(seed=seed) for seed in range(3)],
        eval_func=correlation,
        reporter="quiet",
    )
    assert result.accepted, result.reason
    assert result.counts["int8_kernels"] == result.counts["int8_kernels_expected"] == 14
    assert result.best.metrics["accuracy"] < 1.0, "this is the float model"


def test_query_key_and_value_share_a_choice():
    options = AdapterOptions(example=tokens(), extra=FrozenMap({"compile": False}))
    adapter = PyTorchAdapter()
    space = TuningSpace.of(adapter.query(adapter.load(bert(), options)))
    shared = [group.ops for group in space.groups if len(group.ops) == 3]
    assert len(shared) == 2
    assert all(
        name.rsplit(".", 1)[-1] == part
        for ops in shared
        for name, part in zip(ops, ("query", "key", "value"), strict=True)
    )


def test_batches_of_another_length_are_taken():
    adapter = PyTorchAdapter()
    hold = adapter.load(bert(), AdapterOptions(example=tokens(), extra=FrozenMap({"compile": False})))
    built = adapter.build(hold, FLOAT_CANDIDATE, None, None)
    for rows, length in ((1, 16), (7, 9), (3, 40)):
        inputs = tokens(rows, length)
        with torch.no_grad():
            expected = bert()(**inputs).logits.numpy()
        np.testing.assert_allclose(adapter.run(built, inputs)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_saved_transformer_is_nearly_four_times_smaller(tmp_path):
    """Weights of linears in one byte, nothing dead kept; norms stay float."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 1024}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=32, num_labels=3, **sizes)
    module = transformers.BertForSequenceClassification(config).eval()
    adapter, batch = PyTorchAdapter(), tokens()
    batch["input_ids"] %= 50
    hold = adapter.load(module, AdapterOptions(approach="dynamic", example=batch, extra=FrozenMap({"compile": False})))
    space = TuningSpace.of(adapter.query(hold))
    whole = adapter.save(adapter.build(hold, FLOAT_CANDIDATE, None, None), tmp_path / "float").stat().st_size
    small = adapter.save(adapter.build(hold, space.preferred(), None, None), tmp_path / "int8").stat().st_size
    assert whole / small > 3.3
