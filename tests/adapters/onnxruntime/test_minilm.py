"""A trained transformer: MiniLM on STS-B, dynamic and mixed, and what the runtime's own tool does with the same graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')
pytest.importorskip("onnxscript", reason="torch exports through it")
pytest.importorskip("torch", reason="the transformer is exported from torch")
import onnxruntime
from graphs import ADAPTER, options

from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, Status, TuningCriterion, fit
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Mode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared_data,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
PAIRS = 300


@pytest.fixture(scope="module")
def loader(shared_data: Path) -> Any:
    """The module beside the data that exports the model and knows its metric."""
    sys.path.insert(0, str(shared_data))
    try:
        import load_models

        yield load_models
    finally:
        sys.path.remove(str(shared_data))


@pytest.fixture(scope="module")
def exported(loader: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.onnx"
    loader.export_onnx("minilm_stsb", path)
    return path


@pytest.fixture(scope="module")
def sentences(loader: Any) -> dict[str, np.ndarray]:
    return loader.dataset("stsb")


def batch(data: dict[str, np.ndarray], part: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    mask = data[f"attention_mask_{part}"][rows].astype(np.int64)
    length = max(2, int(mask.sum(1).max()))
    ids = data[f"input_ids_{part}"][rows].astype(np.int64)
    return {"input_ids": ids[:, :length], "attention_mask": mask[:, :length]}


def spearman(loader: Any, data: dict[str, np.ndarray], session: Any) -> float:
    """The metric on a cut-down set: some pairs over the whole range, short sentences together."""
    pairs = len(data["y_val"])
    chosen = np.linspace(0, pairs - 1, PAIRS).astype(int)
    rows = np.concatenate([chosen, chosen + pairs])
    order = np.argsort(data["attention_mask_val"][rows].sum(1), kind="stable")
    outputs = np.zeros((len(rows), 384), np.float32)
    for begin in range(0, len(rows), 50):
        places = order[begin : begin + 50]
        outputs[places] = session.run(None, batch(data, "val", rows[places]))[0]
    return loader.metric("minilm_stsb", outputs, data["y_val"][chosen])


def test_dynamic_and_auto_keep_the_correlation_within_one_percent(
    loader: Any, exported: Path, sentences: dict[str, np.ndarray], tmp_path: Path
) -> None:
    calibration = [batch(sentences, "calib", np.arange(begin, begin + 16)) for begin in (0, 16)]
    baseline = None
    for approach in ("dynamic", "auto"):
        hold = ADAPTER.load(str(exported), options(approach=approach))
        space = TuningSpace.of(ADAPTER.query(hold))
        if baseline is None:
            baseline = spearman(loader, sentences, ADAPTER.native(ADAPTER.build(hold, FLOAT_CANDIDATE, None, 2)))
        statistics = ADAPTER.calibrate(hold, calibration, tmp_path) if approach == "auto" else None
        chosen = {group.name: group.choices[0] for group in space.groups}
        if approach == "auto":  # every mode there is, side by side
            for number, group in enumerate(group for group in space.groups if group.type == "MatMul"):
                modes = (Mode.DYNAMIC, Mode.STATIC, Mode.WEIGHT_ONLY)
                chosen[group.name] = next(c for c in group.choices if c.mode is modes[number % 3])
        built = ADAPTER.build(hold, space.candidate(chosen), statistics, 2)
        products = [op for op in built.report.ops if op.type == "MatMul" and not op.is_float]
        assert len(products) == 36
        assert ADAPTER.size(built) * 3.5 < exported.stat().st_size
        assert spearman(loader, sentences, ADAPTER.native(built)) >= 0.99 * baseline


def test_fit_accepts_a_dynamic_transformer_without_calibration_data(
    loader: Any, exported: Path, sentences: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The whole way: no calibration loader, an evaluation function, a saved artifact that plain onnxruntime runs."""
    sample = batch(sentences, "calib", np.arange(8))
    result = fit(
        str(exported),
        PostTrainingQuantConfig(
            approach="dynamic",
            workspace=str(tmp_path),
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
            tuning_criterion=TuningCriterion(max_trials=1),
            performance=PerformanceConfig(seconds=1.0, repeats=8, warmup=1),
        ),
        eval_func=lambda session: spearman(loader, sentences, session),
        eval_dataloader=[sample],
        reporter="quiet",
    )
    assert result.status is Status.ACCEPTED, result.reason
    assert result.size_ratio > 2.5  # the table gains no time, so it may stay float where the objective is latency
    assert {op.type for op in result.ops if op.precision.startswith("dynamic")} == {"MatMul"}
    result.save(tmp_path / "saved")
    plain = onnxruntime.InferenceSession(result.artifact, providers=["CPUExecutionProvider"])
    assert np.isfinite(plain.run(None, sample)[0]).all()
