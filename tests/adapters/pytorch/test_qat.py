"""Quantization-aware training: what is trained is what runs, on every backend; gradients; ranges without calibration; fewer bits."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from neural_tune import (
    AccuracyCriterion,
    PerformanceConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    fit,
    prepare_compression,
)
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("sklearn", reason="needs scikit-learn, whose digits are trained on")

from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.swap import WEIGHT, Grid  # noqa: E402
from neural_tune_pytorch.qat_fake_quant import FakeQuant, WeightFakeQuant  # noqa: E402

QUICK = PerformanceConfig(warmup=1, repeats=10, seconds=0.05, batch_size=32)


def train(model, pictures, labels, epochs=2, rate=2e-3, seed=0):
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(pictures[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return torch.from_numpy(found.images).float()[:, None] / 16, torch.from_numpy(found.target)


@pytest.fixture(scope="module")
def classifier(digits):
    """A small CNN with batch norm, trained on the first 1,000 digits."""
    torch.manual_seed(11)
    network = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )
    return train(network, digits[0][:1000], digits[1][:1000], epochs=8, rate=5e-3)


def opened(classifier, digits, tmp_path, backend, *, calibrated=True, **extra):
    adapter, pictures = PyTorchAdapter(), digits[0][:200].numpy()
    hold = adapter.load(classifier, AdapterOptions(approach="qat", backend=backend, example=pictures[:8], extra=extra))
    candidate = TuningSpace.of(adapter.query(hold)).preferred()
    statistics = adapter.calibrate(hold, [pictures], tmp_path / "statistics") if calibrated else None
    return adapter, hold, candidate, statistics


@pytest.mark.parametrize("backend", ["fx", "eager", "pt2e"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_integer_model_computes_what_was_trained(classifier, digits, tmp_path, backend, calibrated):
    before = copy.deepcopy(classifier.state_dict())
    extra = {"compile": False} if backend == "pt2e" else {}
    adapter, hold, candidate, statistics = opened(classifier, digits, tmp_path, backend, calibrated=calibrated, **extra)
    training = adapter.training(hold, candidate, statistics)
    assert training.model.training
    train(training.model, digits[0][:1000], digits[1][:1000], epochs=1)
    held_out = digits[0][1000:]
    with torch.no_grad():
        trained = training.model(held_out).numpy()
        untrained = classifier(held_out).numpy()
    built = training.finish(1)
    found = adapter.run(built, held_out.numpy())[0]
    assert (found.argmax(1) == trained.argmax(1)).mean() > 0.99
    # A step of the logits is a hundredth of their range at most; ties may round the other way.
    assert np.abs(found - trained).mean() < 0.01 * np.abs(trained).max()
    assert np.abs(trained - untrained).mean() > 0.01 * np.abs(trained).max(), "nothing was trained"
    assert all(torch.equal(value, classifier.state_dict()[name]) for name, value in before.items())
    assert not {outcome.name for outcome in adapter.report(built).ops if outcome.is_float} & set(candidate.ops)
    restored = adapter.restore(adapter.save(built, tmp_path / "model"), 1)
    np.testing.assert_array_equal(adapter.run(restored, held_out.numpy())[0], found)


def test_untrained_it_equals_post_training_quantization(classifier, digits, tmp_path):
    adapter, hold, candidate, statistics = opened(classifier, digits, tmp_path, "fx")
    finished = adapter.training(hold, candidate, statistics).finish(1)
    built = adapter.build(hold, candidate, statistics, 1)
    held_out = digits[0][1000:].numpy()
    np.testing.assert_allclose(adapter.run(finished, held_out)[0], adapter.run(built, held_out)[0], atol=1e-5)


def test_fake_quant_equals_torchs_own_and_its_step_has_the_gradient_of_lsq():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(500, generator=generator, requires_grad=True)
    module = FakeQuant(Grid(scale=0.05, zero=20, last=63), last=63)
    found = module(values)
    expected = torch.fake_quantize_per_tensor_affine(values.detach(), 0.05, 20, 0, 63)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-6)
    found.sum().backward()
    codes = torch.round(values.detach() / 0.05) + 20
    inside = (codes >= 0) & (codes <= 63)
    assert torch.equal(values.grad, inside.float())  # straight through inside, nothing outside
    # Esser et al. 2020, equation 3, times the step (its logarithm is trained), over sqrt(elements * levels).
    slope = torch.where(inside, torch.round(values.detach() / 0.05) - values.detach() / 0.05, codes.clamp(0, 63) - 20)
    wanted = slope.sum() * 0.05 / np.sqrt(500 * 63)
    torch.testing.assert_close(module.log_step.grad, wanted, rtol=1e-3, atol=1e-6)


def test_a_weight_at_eight_bits_follows_its_largest_value_and_below_learns_its_step():
    weight = nn.Parameter(torch.randn(4, 10, generator=torch.Generator().manual_seed(2)))
    eight, three = WeightFakeQuant(weight, WEIGHT), WeightFakeQuant(weight, WEIGHT, bits=3)
    assert not list(eight.parameters())
    torch.testing.assert_close(eight.grid(weight).scale, weight.detach().abs().amax(1) / 127)
    assert three.log_step.shape == (4,)
    assert three(weight).unique(dim=1).shape[1] <= 10
    assert all(len(row.unique()) <= 7 for row in three(weight).detach())


def test_training_that_diverged_or_never_saw_a_batch_is_an_adapter_error(classifier, digits, tmp_path):
    adapter, hold, candidate, statistics = opened(classifier, digits, tmp_path, "fx")
    broken = adapter.training(hold, candidate, statistics)
    next(broken.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(AdapterError, match="not finite"):
        broken.finish(1)
    with pytest.raises(AdapterError, match="no training batch"):
        adapter.training(hold, candidate, None).finish(1)


def test_fewer_bits_are_simulated_and_say_so(classifier, digits, tmp_path):
    adapter, hold, candidate, statistics = opened(classifier, digits, tmp_path, "fx", bits=3)
    built = adapter.build(hold, candidate, statistics, 1)
    report = adapter.report(built)
    assert report.counts["int8_kernels"] == 0.0
    assert any("3 bits are simulated" in note for note in report.notes)
    rounded = [module.weight for module in built.network.modules() if isinstance(module, nn.Conv2d)]
    assert rounded
    assert all(len(row.unique()) <= 7 for kernel in rounded for row in kernel.flatten(1))
    with pytest.raises(CapabilityError, match="bits"):
        opened(classifier, digits, tmp_path, "eager", bits=3)


def test_fit_trains_what_post_training_quantization_loses(classifier, digits, tmp_path):
    """Three bits: the post-training model misses the criterion, the trained one is kept because it is better."""
    pictures, labels = digits
    calls = []

    def train_func(model):
        calls.append(model)
        train(model, pictures[:1000], labels[:1000], epochs=4)

    result = fit(
        classifier,
        QuantizationAwareTrainingConfig(
            backend="fx",
            options={"bits": 3},
            workspace=str(tmp_path / "w"),
            performance=QUICK,
            accuracy_criterion=AccuracyCriterion(True, "absolute", 0.01),
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=1),
        ),
        calib_dataloader=[pictures[:200].numpy()],
        eval_dataloader=[(pictures[1000:].numpy(), labels[1000:].numpy())],
        eval_metric="topk",
        framework="pytorch",
        reporter="quiet",
        train_func=train_func,
    )
    assert len(calls) == 1
    assert any("the trained model was kept" in notice for notice in result.notices)
    assert result.best.metrics["topk"] >= result.baseline.metrics["topk"] - 0.03


def test_prepare_compression_gives_a_module_for_a_loop_of_ones_own(classifier, digits, tmp_path):
    pictures, labels = digits
    conf = QuantizationAwareTrainingConfig(backend="fx")
    manager = prepare_compression(classifier, conf, calib_dataloader=[pictures[:100].numpy()])
    train(manager.model, pictures[:1000], labels[:1000], epochs=1)
    manager.callbacks.on_train_end()
    accuracy = (torch.as_tensor(manager.model(pictures[1000:])).argmax(1) == labels[1000:]).float().mean()
    assert accuracy > 0.9
    assert manager.save(tmp_path / "saved").is_file()
