"""A graph that ends TensorFlow's process is a failed trial with its reason, and not the end of the run."""

from __future__ import annotations

import sys

import models
import numpy as np
import pytest
from test_canonical import depthwise_explicit

from neural_tune import PostTrainingQuantConfig, TuningCriterion, fit
from neural_tune.errors import AdapterError
from neural_tune.protocols import AdapterOptions
from neural_tune.values import TrialStatus
from neural_tune_tensorflow import guard
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.runtime import NodeDef


def test_an_abort_in_the_child_is_an_adapter_error_with_its_reason() -> None:
    graph_def = depthwise_explicit(bias=True)
    assert guard.risks(graph_def)
    with pytest.raises(AdapterError, match="TensorFlow ended the child process with signal"):
        guard.check(graph_def, "the candidate")


@pytest.fixture
def aborting(monkeypatch):
    """The first graph that is written holds the float depthwise convolution that aborts TensorFlow; the others are as they should be."""
    emitted, written = onednn.emit, []

    def emit(*arguments):
        graph = emitted(*arguments).copy()
        for node in graph:
            if node.op == "DepthwiseConv2dNative" and not written:
                spoiled = NodeDef()  # the float model's own node stays as it is
                spoiled.CopyFrom(node)
                spoiled.attr["padding"].s = b"EXPLICIT"
                spoiled.attr["explicit_paddings"].list.i.extend([0, 0, 1, 1, 1, 1, 0, 0])
                graph.nodes[node.name] = spoiled
        written.append(graph)
        return graph

    monkeypatch.setattr(onednn, "emit", emit)


def test_a_candidate_that_aborts_tensorflow_is_refused_and_the_process_lives(tmp_path, aborting) -> None:
    hold = models.hold_of(models.small_cnn())
    batch = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
    statistics = models.ADAPTER.calibrate(hold, [batch], tmp_path)
    floats = {name: config for name, config in models.full(hold).ops.items() if "depthwise" not in name}
    with pytest.raises(AdapterError, match="explicitly padded DepthwiseConv2dNative"):
        models.ADAPTER.build(hold, models.Candidate.of(floats), statistics, 1)


def test_fit_counts_an_aborting_candidate_as_a_failed_trial_with_its_reason_and_goes_on(tmp_path, aborting) -> None:
    images = np.random.default_rng(1).normal(size=(32, 8, 8, 4)).astype(np.float32)
    result = fit(
        models.small_cnn(),
        PostTrainingQuantConfig(
            workspace=str(tmp_path / "w"),
            op_type_dict={"DepthwiseConv2dNative": {"activation": {"dtype": ["fp32"]}, "weight": {"dtype": ["fp32"]}}},
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=4, objective="size"),
        ),
        calib_dataloader=[images],
        eval_func=lambda network: float(np.isfinite(network.predict(images)).all()),
        reporter="quiet",
    )
    assert result.trials, result.reason
    first, *others = result.trials
    assert first.status is TrialStatus.FAILED
    assert "explicitly padded DepthwiseConv2dNative" in first.error
    assert "TensorFlow ended the child process with signal 6" in first.error
    assert result.accepted, result.reason
    assert any(trial.is_accepted for trial in others)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(3)", "exit code 3: it said nothing"),
        ("raise ImportError('no such wheel')", "exit code 1: .*no such wheel"),
    ],
)
def test_a_child_that_fails_shows_nothing_about_the_graph(code: str, expected: str, tmp_path, monkeypatch) -> None:
    """Only a child that ends with 0 has tried the graph."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!{sys.executable}\n{code}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(guard.sys, "executable", str(stand_in))
    with pytest.raises(AdapterError, match=f"the candidate: it is not known to be safe.*{expected}"):
        guard.try_in_child(depthwise_explicit(), "the candidate")


def test_ordinary_graphs_cost_no_child(monkeypatch) -> None:
    monkeypatch.setattr(guard, "try_in_child", lambda *_: pytest.fail("a child was started"))
    models.ADAPTER.load(models.small_cnn(), AdapterOptions())
