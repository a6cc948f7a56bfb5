"""The latency profile of pt2e: statements of generated code are traced to ops and borders, and sums predict real run times."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from neural_tune.errors import AdapterError
from neural_tune.measure import compare_speed
from neural_tune.protocols import AdapterOptions, ProfilesLatency
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, FrozenMap, Role

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import lowering  # noqa: E402
from neural_tune_pytorch.backends.pt2e.inductor import Form, Kernels  # noqa: E402
from neural_tune_pytorch.backends.pt2e.statements import Clocked  # noqa: E402

pytestmark = pytest.mark.skipif(bool(lowering.probe().problem), reason="torch.compile finds no C++ compiler here")
ADAPTER = PyTorchAdapter()


def held(module, batches, folder, approach="static", **extra):
    options = AdapterOptions(approach=approach, example=batches[0], extra=FrozenMap(extra))
    hold = ADAPTER.load(module, options)
    capability = ADAPTER.query(hold)
    return hold, capability, TuningSpace.of(capability).preferred(), ADAPTER.calibrate(hold, batches, folder)


@pytest.fixture(scope="module")
def small(networks, tmp_path_factory):
    """The small network, with its profile for batches of four."""
    batches = networks.images(batches=2)
    hold, capability, full, statistics = held(networks.small(), batches, tmp_path_factory.mktemp("statistics"))
    found = ADAPTER.profile(hold, full, statistics, batches[0], 1)
    return hold, capability, full, statistics, batches, found


def test_every_anchor_has_a_time_in_both_precisions(small):
    _, capability, full, _, _, found = small
    assert isinstance(ADAPTER, ProfilesLatency)
    for op in capability.ops:
        if op.role is Role.ANCHOR:
            assert found.float_ms[op.name] > 0, op.name
            assert found.int8_ms[op.name] > 0, op.name
    assert set(full.ops) <= set(found.int8_ms)
    assert (found.batch_size, found.threads) == (4, 1)


def test_only_entering_int8_costs_something(small):
    _, capability, _, _, _, found = small
    first = next(op for op in capability.ops if op.role is Role.ANCHOR)
    assert found.border_ms[first.inputs[0]] > 0
    assert set(found.leave_ms.values()) == {0.0}


def test_both_ends_are_predicted_as_they_were_measured(small):
    """Float by construction. Full int8 by a fit that may correct by half only, so that this fails where statements find no op."""
    hold, capability, full, statistics, batches, found = small
    times = [
        ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1),
        ADAPTER.build(hold, full, statistics, 1),
    ]
    runs = [partial(ADAPTER.run, built, batches[0]) for built in times]
    ratio = compare_speed(*runs, batch_size=4, threads=1, seconds=0.5).ratio
    predicted = found.predict(capability, ()) / found.predict(capability, full.ops)
    assert 0.5 < predicted / ratio < 2.0  # the machine may be busy, and so may Python around a network of microseconds


def test_a_timed_form_gives_the_same_numbers_and_is_itself_again_afterwards(small):
    hold, _, full, statistics, batches, _ = small
    built = ADAPTER.build(hold, full, statistics, 1)
    before = ADAPTER.run(built, batches[0])[0]
    form = built.network.forms[0]
    runner, clocked = form.output.current_callable, Clocked(form)
    with clocked.ticking():
        np.testing.assert_array_equal(ADAPTER.run(built, batches[0])[0], before)
    assert form.output.current_callable == runner
    seconds = clocked.seconds()
    kernels = [statement.kernel for statement in clocked.statements]
    assert len(seconds) == len(kernels)
    assert min(seconds) > 0
    assert sum("onednn.qconv" in kernel for kernel in kernels) == 3
    assert sum("onednn.qlinear" in kernel for kernel in kernels) == 1
    first = clocked.statements[0]
    assert first.only_quantizes
    assert first.codes == batches[0].size


def test_dynamic_ops_bear_the_cost_of_finding_their_range_themselves(networks, tmp_path):
    generator = np.random.default_rng(3)
    batches = [
        {name: generator.normal(size=(4, 16)).astype(np.float32) for name in ("left", "right")} for _ in range(2)
    ]
    hold, _, full, statistics = held(networks.perceptron(), batches, tmp_path, "dynamic")
    found = ADAPTER.profile(hold, full, statistics, batches[0], 1)
    assert all(found.int8_ms[name] > 0 for name in full.ops)
    assert set(found.border_ms.values()) == {0.0}


def test_uncompiled_graphs_have_no_profile(networks, tmp_path):
    hold, _, full, statistics = held(networks.small(), networks.images(batches=2), tmp_path, compile=False)
    with pytest.raises(AdapterError, match="compile=False"):
        ADAPTER.profile(hold, full, statistics, networks.images()[0], 1)


def test_code_that_cannot_be_timed_is_an_adapter_error():
    with pytest.raises(AdapterError, match="no latency profile"):
        Clocked(Form(lambda: None, Kernels(0, 0), "", None))


@pytest.mark.slow
@pytest.mark.shared_data
def test_predictions_hold_on_a_real_network(shared_data, tmp_path):
    """Within 35 % of the measured ratio to float, on a machine that may be busy; benchmarks/pytorch/bench_predict.py asks for 20 %."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("neural_tune_tests_load_models", shared_data / "load_models.py")
    builders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builders)
    data = builders.dataset("cifar10")
    x = builders.prepare("resnet8_cifar10", data["x_calib"][:8])
    hold, capability, full, statistics = held(builders.torch_model("resnet8_cifar10"), [x], tmp_path)
    found, rng = ADAPTER.profile(hold, full, statistics, x, 1), random.Random(5)
    reference = ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1)
    for _ in range(2):
        candidate = Candidate.of({name: config for name, config in full.ops.items() if rng.random() < 0.6})
        built = ADAPTER.build(hold, candidate, statistics, 1)
        runs = [partial(ADAPTER.run, item, x) for item in (reference, built)]
        measured = compare_speed(*runs, batch_size=8, threads=1, seconds=1.0).ratio
        predicted = found.predict(capability, ()) / found.predict(capability, candidate.ops)
        assert predicted == pytest.approx(measured, rel=0.35)
