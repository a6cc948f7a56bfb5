"""The times of a profile belong to the ops that took them, whatever name the optimizer gave to what it fused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ADAPTER, full, graph_of, hold_of

from neural_tune.values import Candidate
from neural_tune_tensorflow.inputs import to_feed
from neural_tune_tensorflow.profile import swallowed
from neural_tune_tensorflow.runtime import tf
from neural_tune_tensorflow.session import full_name

GENERATOR = np.random.default_rng(47)
KERNELS = [(GENERATOR.normal(size=(3, 3, 16, 16)) * 0.1).astype(np.float32) for _ in range(5)]
BIAS = GENERATOR.normal(size=16).astype(np.float32)


def _conv(x: Any, number: int, name: str) -> Any:
    return tf.nn.bias_add(tf.nn.conv2d(x, KERNELS[number], 1, "SAME", name=name), BIAS)


def _residual(x: Any) -> Any:
    """Two blocks as in a ResNet: one adds what it read, the other has a convolution on both sides of its sum, with a weight of the first."""
    x = tf.nn.relu(_conv(x, 2, "stem"))
    x = tf.nn.relu(_conv(tf.nn.relu(_conv(x, 0, "conv1")), 1, "conv2") + x, name="block1")
    left = _conv(tf.nn.relu(_conv(x, 0, "conv3")), 1, "conv4")
    x = tf.nn.relu(left + _conv(x, 1, "conv5"), name="block2")
    return tf.linalg.matmul(tf.reduce_mean(x, [1, 2]), KERNELS[0][0, 0], name="head")


@pytest.fixture(scope="module")
def batch() -> Any:
    return GENERATOR.normal(size=(8, 24, 24, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def ready(batch, tmp_path_factory) -> Any:
    hold = hold_of(graph_of(_residual, {"x": (None, 24, 24, 16)}))
    return hold, ADAPTER.calibrate(hold, [batch], tmp_path_factory.mktemp("statistics"))


@pytest.fixture(scope="module")
def profile(ready, batch) -> Any:
    hold, statistics = ready
    return ADAPTER.profile(hold, full(hold), statistics, batch, 1)


def _optimized(hold: Any, candidate: Candidate, statistics: Any, batch: Any) -> Any:
    built = ADAPTER.build(hold, candidate, statistics, 1)
    feed = to_feed(batch, hold.inputs)
    fed = {port.tensor: feed[port.name] for port in hold.inputs}
    return built.run.session.optimized(fed, [full_name(port.tensor) for port in built.outputs])


def test_what_a_float_product_swallowed_is_led_back_to_it(ready, batch) -> None:
    hold, statistics = ready
    nodes = _optimized(hold, Candidate(), statistics, batch)
    found = swallowed(hold.graph, nodes)
    assert found["block1"] == "conv2"
    assert found["add"] == "conv2"
    # Whatever convolution does not run under its own name runs inside of exactly one fused node.
    running = {node.name for node in nodes}
    hidden = {name for name in hold.units.by_name if name not in running}
    assert {found[name] for name in found} == hidden
    assert all(found[name] == name for name in hidden)


def test_every_product_has_both_times_and_they_add_up_to_the_run(ready, profile) -> None:
    hold, _ = ready
    for name in full(hold).ops:
        assert profile.float_ms[name] > 0.0, name
        assert profile.int8_ms[name] > 0.0, name
    ops = ADAPTER.query(hold).ops
    known = sum(profile.float_ms.get(op.name, 0.0) for op in ops)
    assert known == pytest.approx(sum(profile.float_ms.values()), rel=0.05)
    # Five equal convolutions: the ones that run under the name of a sum's activation are not far from their twins.
    times = [profile.float_ms[f"conv{number}"] for number in range(1, 6)]
    assert min(times) > 0.2 * max(times)


def test_a_sum_that_stands_alone_only_in_int8_counts_for_its_product_in_both(ready, profile, batch) -> None:
    hold, statistics = ready
    inside = swallowed(hold.graph, _optimized(hold, Candidate(), statistics, batch))
    assert not {name for name, product in inside.items() if name != product} & {*profile.float_ms}
    assert not {"add", "block1"} & {name for name, value in profile.int8_ms.items() if value}


@pytest.mark.slow
@pytest.mark.shared_data
def test_every_product_of_resnet8_has_a_float_time(shared_data: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("load_models", shared_data / "load_models.py")
    kit: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    images = kit.prepare("resnet8_cifar10", kit.dataset("cifar10")["x_calib"][:16], layout="NHWC")
    hold = hold_of(kit.keras_model("resnet8_cifar10"))
    candidate = full(hold)
    profile = ADAPTER.profile(hold, candidate, ADAPTER.calibrate(hold, [images], tmp_path), images, 1)
    assert all(profile.float_ms.get(name, 0.0) > 0.0 for name in candidate.ops)
    total = sum(profile.float_ms.values())
    assert sum(profile.float_ms[name] for name in candidate.ops) > 0.7 * total
