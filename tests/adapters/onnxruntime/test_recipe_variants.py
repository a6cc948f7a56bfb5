"""Recipes through the adapter: what is offered, what a candidate gets, what is remembered, what happens without inputs."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import gc
import multiprocessing
from dataclasses import replace

import graphs
import numpy as np
from graphs import ADAPTER, Tuned
from onnx import helper

from neural_tune.calibration import spool
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.numerics.rescaling import Change
from neural_tune.values import Candidate
from neural_tune_onnxruntime.recipes import derive, equalization, variants

BOTH = ("bias_correction", "equalization")


@pytest.fixture
def tuned(tmp_path):
    return Tuned(graphs.conv_net(), graphs.batches(graphs.conv_net()), tmp_path)


def with_recipes(tuned, recipes):
    return Candidate.of(tuned.space.preferred().ops, (), recipes)


def test_only_recipes_with_something_to_do_are_offered(tmp_path):
    assert ADAPTER.query(
        graphs.Tuned(graphs.perceptron(), graphs.batches(graphs.perceptron()), tmp_path).hold
    ).recipes == (
        "equalization",
        "bias_correction",
    )
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    model = graphs.graph_of(nodes, {}, {"x": ["n", 4]})
    assert Tuned(model, graphs.batches(model), tmp_path / "b").capability.recipes == ()


def test_a_recipe_that_is_not_offered_is_refused_by_name(tuned):
    for name in ("smoothquant", "magic"):
        with pytest.raises(CapabilityError, match=f"'{name}'.*'equalization', 'bias_correction'"):
            tuned.build(with_recipes(tuned, (name,)))


@pytest.mark.parametrize("recipes", [(), ("equalization",), ("bias_correction",), BOTH])
def test_ops_and_precisions_are_the_same_with_and_without_recipes(tuned, recipes):
    plain, changed = tuned.build(), tuned.build(with_recipes(tuned, recipes))
    assert [(op.name, op.precision) for op in changed.report.ops] == [
        (op.name, op.precision) for op in plain.report.ops
    ]
    assert changed.size == pytest.approx(plain.size, rel=0.1)


@pytest.mark.parametrize("recipes", [("equalization",), BOTH])
def test_the_saved_model_is_the_one_that_was_built(tuned, recipes, tmp_path):
    built = tuned.build(with_recipes(tuned, recipes))
    path = ADAPTER.save(built, tmp_path / "saved")
    assert path.stat().st_size == built.size
    found = graphs.run(path, tuned.feeds[0])[0]
    np.testing.assert_array_equal(found, ADAPTER.run(built, tuned.feeds[0])[0])


def test_a_candidate_without_recipes_is_untouched_by_earlier_ones(tmp_path):
    model = graphs.conv_net()
    fresh = Tuned(model, graphs.batches(model), tmp_path / "fresh")
    used = Tuned(model, graphs.batches(model), tmp_path / "used")
    used.build(with_recipes(used, BOTH))
    np.testing.assert_array_equal(fresh.run()[0], used.run()[0])


def test_float_with_recipes_is_the_float_model(tuned):
    built = tuned.build(Candidate.of({}, (), ("equalization",)))
    np.testing.assert_array_equal(ADAPTER.run(built, tuned.feeds[0])[0], tuned.run(Candidate())[0])


def test_a_variant_is_made_once_and_shared_by_combinations(tuned, monkeypatch):
    first = variants.prepare(tuned.hold, ("equalization",), tuned.statistics)
    assert variants.prepare(tuned.hold, ("equalization",), tuned.statistics) is first
    monkeypatch.setattr(equalization, "propose", None)
    both = variants.prepare(tuned.hold, BOTH, tuned.statistics)
    assert both is variants.prepare(tuned.hold, tuple(reversed(BOTH)), tuned.statistics)
    assert both.statistics is first.statistics


def test_other_statistics_make_another_variant(tuned):
    first = variants.prepare(tuned.hold, ("equalization",), tuned.statistics)
    second = variants.prepare(tuned.hold, ("equalization",), replace(tuned.statistics))
    assert second is not first


def test_the_order_of_names_does_not_matter(tuned):
    one = tuned.run(Candidate(tuned.space.preferred().ops, (), BOTH))
    two = tuned.run(Candidate(tuned.space.preferred().ops, (), tuple(reversed(BOTH))))
    np.testing.assert_array_equal(one[0], two[0])


def test_a_built_model_outlives_its_hold(tmp_path):
    tuned = Tuned(graphs.conv_net(), graphs.batches(graphs.conv_net()), tmp_path)
    built = tuned.build(with_recipes(tuned, BOTH))
    expected = ADAPTER.run(built, tuned.feeds[0])[0]
    feeds = tuned.feeds
    del tuned
    gc.collect()
    path = ADAPTER.save(built, tmp_path / "saved")
    np.testing.assert_array_equal(graphs.run(path, feeds[0])[0], expected)


def _in_child(tuned, queue):
    built = tuned.build(with_recipes(tuned, BOTH))
    queue.put(ADAPTER.run(built, tuned.feeds[0])[0])


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_forked_processes_make_the_same_variant(tuned):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(tuned, queue))
    child.start()
    found = queue.get()
    child.join()
    np.testing.assert_array_equal(found, tuned.run(with_recipes(tuned, BOTH))[0])


def test_a_change_of_the_function_is_not_applied_and_says_so(tuned, monkeypatch):
    def wrong(model, inputs):
        op = next(op for op in model.graph.ops if op.name == "conv2")
        edits = {("conv2", 1): np.array(model.store.array(op.inputs[1])) * 1.001}
        return Change(edits=edits, tensors=("c2",), refused={}, note="wrong")

    monkeypatch.setitem(dict_of_proposals(monkeypatch), "equalization", wrong)
    variant = variants.prepare(tuned.hold, ("equalization",), tuned.statistics)
    assert variant.statistics is tuned.statistics
    assert any("equalization was not applied" in note for note in variant.model.notes)
    built = tuned.build(with_recipes(tuned, ("equalization",)))
    assert any("not applied" in note for note in built.report.notes)
    np.testing.assert_array_equal(ADAPTER.run(built, tuned.feeds[0])[0], tuned.run()[0])


def dict_of_proposals(monkeypatch):
    proposals = dict(variants._PROPOSALS)
    monkeypatch.setattr(variants, "_PROPOSALS", proposals)
    return proposals


def test_calibration_inputs_are_read_back_from_disk(tmp_path):
    model = graphs.conv_net()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    again = ADAPTER.load_statistics(tuned.hold, tmp_path / "statistics")
    for before, after in zip(tuned.feeds, again.inputs.feeds(), strict=True):
        np.testing.assert_array_equal(before["x"], after["x"])
    found = ADAPTER.run(ADAPTER.build(tuned.hold, with_recipes(tuned, BOTH), again, 1), tuned.feeds[0])
    np.testing.assert_array_equal(found[0], tuned.run(with_recipes(tuned, BOTH))[0])


def test_without_the_inputs_the_statistics_are_incomplete(tuned, tmp_path):
    (tmp_path / "statistics" / "inputs" / "000001.npz").unlink()
    assert ADAPTER.load_statistics(tuned.hold, tmp_path / "statistics") is None


def test_recipes_without_inputs_say_what_to_do(tuned):
    with pytest.raises(AdapterError, match="calibrate first"):
        ADAPTER.build(tuned.hold, with_recipes(tuned, BOTH), replace(tuned.statistics, inputs=None), 1)


def test_the_inputs_are_bounded_and_the_note_says_so(tmp_path, monkeypatch):
    model = graphs.conv_net()
    feeds = graphs.batches(model)
    monkeypatch.setattr(spool.Recorder.__init__, "__kwdefaults__", {"bound": 2 * feeds[0]["x"].nbytes})
    tuned = Tuned(model, feeds, tmp_path)
    assert (tuned.statistics.inputs.batches, tuned.statistics.inputs.seen) == (2, 4)
    notes = tuned.build(with_recipes(tuned, ("equalization",))).report.notes
    assert any("first 2 of 4 calibration batches" in note for note in notes)


def test_a_first_batch_above_the_bound_is_kept(tmp_path):
    recorder = spool.Recorder(tmp_path, bound=1)
    feeds = [{"x": np.ones((3, 2), np.float32)}, {"x": np.zeros((3, 2), np.float32)}]
    assert list(recorder.passing(feeds)) == feeds
    assert recorder.close().batches == 1


def test_feeds_can_be_cut_after_some_samples(tmp_path):
    recorder = spool.Recorder(tmp_path)
    list(recorder.passing({"x": np.full((4, 1), float(i), np.float32)} for i in range(3)))
    kept = recorder.close()
    assert [len(feed["x"]) for feed in kept.feeds(6)] == [4, 2]
    assert [len(feed["x"]) for feed in kept.feeds()] == [4, 4, 4]


def test_a_derived_model_leaves_the_original_alone(tuned):
    before = tuned.hold.fingerprint()
    changed = derive.derive(tuned.hold, {("conv2", 2): np.ones(12, np.float32)}, "test")
    assert tuned.hold.fingerprint() == before
    assert changed.kernels["conv2"].bias == 2
    assert tuned.hold.kernels["conv2"].bias is None
