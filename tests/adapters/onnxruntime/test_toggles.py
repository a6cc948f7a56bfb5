"""One session in which any subset of a candidate's ops runs in int8."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import random

import graphs
import numpy as np
from graphs import ADAPTER, Tuned
from onnx import numpy_helper

from neural_tune.errors import CapabilityError, DataError
from neural_tune.insights import divergence
from neural_tune.protocols import ProbesSensitivity
from neural_tune.values import FLOAT_CANDIDATE, Candidate

# The runtime computes an Add between int8 ops on codes even where it was not asked to, and sums up in another order where it fuses less: a code may round
# the other way. Relative, on outputs: 0 in most cases; 1.4e-3 at worst on small nets, 5.3e-3 on t60, whose subsets are off by 0.4 themselves.
CLOSE = 8e-3


@pytest.fixture(params=sorted(graphs.NETS))
def tuned(request, tmp_path):
    model = graphs.NETS[request.param]()
    return Tuned(model, graphs.batches(model), tmp_path)


def toggles_of(tuned, candidate=None):
    return ADAPTER.toggles(tuned.hold, candidate or tuned.space.preferred(), tuned.statistics, 1)


def subset(candidate, names):
    return Candidate.of({name: candidate.ops[name] for name in names}, candidate.ranges, candidate.recipes)


def difference(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_the_adapter_has_the_ability():
    assert isinstance(ADAPTER, ProbesSensitivity)


def test_with_everything_off_it_is_the_float_model(tuned):
    (found,) = toggles_of(tuned).run(frozenset(), tuned.feeds[0])
    assert difference(found, tuned.run(FLOAT_CANDIDATE)[0]) <= 1e-6


def test_with_everything_on_it_is_the_full_int8_candidate_bit_for_bit(tuned):
    full = tuned.space.preferred()
    (found,) = toggles_of(tuned).run(frozenset(full.ops), tuned.feeds[0])
    np.testing.assert_array_equal(found, tuned.run(full)[0])
    assert difference(found, tuned.run(FLOAT_CANDIDATE)[0]) > 1e-4


def test_every_op_alone_is_what_a_built_candidate_computes(tuned):
    full, toggles = tuned.space.preferred(), toggles_of(tuned)
    for name in full.ops:
        expected = tuned.run(subset(full, [name]))[0]
        assert difference(toggles.run(frozenset([name]), tuned.feeds[0])[0], expected) <= CLOSE


def test_random_subsets_are_what_built_candidates_compute(tuned):
    full, toggles, rng = tuned.space.preferred(), toggles_of(tuned), random.Random(3)
    for _ in range(8):
        names = [name for name in full.ops if rng.random() < 0.5]
        expected = tuned.run(subset(full, names))[0]
        assert difference(toggles.run(frozenset(names), tuned.feeds[0])[0], expected) <= CLOSE


def test_recipes_of_the_candidate_are_applied(tmp_path):
    model = graphs.residual_net()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    assert {"equalization", "bias_correction"} <= set(tuned.capability.recipes)
    full = Candidate.of(tuned.space.preferred().ops, recipes=("equalization", "bias_correction"))
    toggles = toggles_of(tuned, full)
    plain = tuned.run()[0]
    found = toggles.run(frozenset(full.ops), tuned.feeds[0])[0]
    np.testing.assert_array_equal(found, tuned.run(full)[0])
    assert difference(found, plain) > 1e-4
    assert difference(toggles.run(frozenset(), tuned.feeds[0])[0], tuned.run(FLOAT_CANDIDATE)[0]) <= 1e-6
    for name in full.ops:
        expected = tuned.run(subset(full, [name]))[0]
        assert difference(toggles.run(frozenset([name]), tuned.feeds[0])[0], expected) <= CLOSE


def test_the_bias_correction_of_a_product_is_switched_with_it(tmp_path):
    model = graphs.matmul_net()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    full = Candidate.of(tuned.space.preferred().ops, recipes=("bias_correction",))
    toggles = toggles_of(tuned, full)
    for names in ((), ("up",), ("down", "out"), tuple(full.ops)):
        expected = tuned.run(subset(full, names) if names else FLOAT_CANDIDATE)[0]
        assert difference(toggles.run(frozenset(names), tuned.feeds[0])[0], expected) <= CLOSE
    uncorrected = tuned.run(subset(tuned.space.preferred(), ["up"]))[0]
    assert difference(toggles.run(frozenset(["up"]), tuned.feeds[0])[0], uncorrected) > 1e-4


def test_an_op_that_runs_in_a_new_way_is_added_once(tuned):
    full = tuned.space.preferred()
    toggles = toggles_of(tuned)
    for unit in toggles._units.values():
        unit.plans.clear()  # as if no subset had been looked at
    toggles._start()
    before = toggles._session
    expected = tuned.run(full)[0]
    np.testing.assert_array_equal(toggles.run(frozenset(full.ops), tuned.feeds[0])[0], expected)
    after = toggles._session
    assert after is not before
    np.testing.assert_array_equal(toggles.run(frozenset(full.ops), tuned.feeds[0])[0], expected)
    assert toggles._session is after


def test_a_planted_bad_edge_ranks_first(tmp_path):
    model = graphs.conv_net()
    _blow_up_channel(model, producer="w2", consumer="w3", factor=300.0)
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    full, toggles = tuned.space.preferred(), toggles_of(tuned)
    expected = [(tuned.run(FLOAT_CANDIDATE, feed)[0],) for feed in tuned.feeds]
    scores = {
        name: divergence(expected, [toggles.run(frozenset([name]), feed) for feed in tuned.feeds]) for name in full.ops
    }
    ranking = sorted(scores, key=scores.__getitem__, reverse=True)
    # The tensor between is at fault, so the ops at its two ends lead; an inverted ranking would end with them.
    assert set(ranking[:2]) == {"conv2", "conv3"}
    assert scores[ranking[1]] > 3 * scores[ranking[2]]


def test_an_op_that_the_candidate_does_not_quantize_is_an_error(tuned):
    with pytest.raises(CapabilityError, match="nonsense"):
        toggles_of(tuned).run(frozenset(["nonsense"]), tuned.feeds[0])


def test_inputs_are_checked_as_everywhere(tuned):
    with pytest.raises(DataError):
        toggles_of(tuned).run(frozenset(), np.zeros((2, 2), np.int64))


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("task", ["t20", "t60"])
def test_on_a_real_task_subsets_are_what_built_candidates_compute(task, shared_data, tmp_path):
    with np.load(shared_data / "tasks" / "digits_calib.npz", allow_pickle=False) as data:
        x = data["x"][:96].astype(np.float32) / 255
    tuned = Tuned(shared_data / "tasks" / f"{task}.onnx", [{"x": x[i : i + 32]} for i in range(0, 96, 32)], tmp_path)
    full, toggles, rng = tuned.space.preferred(), toggles_of(tuned), random.Random(0)
    assert difference(toggles.run(frozenset(), tuned.feeds[0])[0], tuned.run(FLOAT_CANDIDATE)[0]) <= 1e-6
    np.testing.assert_array_equal(toggles.run(frozenset(full.ops), tuned.feeds[0])[0], tuned.run(full)[0])
    cases = [[name] for name in rng.sample(sorted(full.ops), 8)]
    cases += [[name for name in full.ops if rng.random() < 0.5] for _ in range(6)]
    for names in cases:
        expected = tuned.run(subset(full, names))[0]
        assert difference(toggles.run(frozenset(names), tuned.feeds[0])[0], expected) <= CLOSE


def _blow_up_channel(model, producer, consumer, factor):
    """Scale one output channel of a convolution up, and the weights that read it (behind a Relu) down: the function stays."""
    tensors = {item.name: item for item in model.graph.initializer}
    up, down = (numpy_helper.to_array(tensors[name]).copy() for name in (producer, consumer))
    up[0] *= factor
    down[:, 0] /= factor
    six = numpy_helper.to_array(tensors["six"]) * np.float32(1e6)  # the Clip becomes a Relu
    for name, values in ((producer, up), (consumer, down), ("six", six)):
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
