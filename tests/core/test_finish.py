from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from neural_tune.finish import _predicted
from neural_tune.values import (
    FLOAT,
    Baseline,
    DType,
    FrozenMap,
    History,
    Insight,
    LatencyProfile,
    Mode,
    OpConfig,
    QuantSpec,
)


def _run(insight: Insight | None, dtype: DType = DType.INT8) -> Any:
    choices = (OpConfig(mode=Mode.WEIGHT_ONLY, weight=QuantSpec(dtype=dtype)), FLOAT)
    groups = tuple(SimpleNamespace(name=name, ops=(name,), choices=choices) for name in ("a", "b", "c", "d"))
    return SimpleNamespace(
        history=History(baseline=Baseline(metrics=FrozenMap({"top1": 0.9})), insight=insight),
        space=SimpleNamespace(groups=groups),
        strategy=SimpleNamespace(name="auto"),
    )


DIVERGENCE = FrozenMap({"a": 0.5, "b": 0.01, "c": 0.001, "d": 0.0001})
PROFILE = LatencyProfile(
    float_ms=FrozenMap({"a": 0.30, "b": 0.30, "d": 0.3}), int8_ms=FrozenMap({"a": 0.1, "b": 0.41, "d": 0.1})
)

HALF = LatencyProfile(float_ms=PROFILE.float_ms, int8_ms=FrozenMap({**PROFILE.int8_ms, "c": 0.6}))


@pytest.mark.parametrize(
    ("insight", "op", "reason"),
    [
        (None, "a", "the strategy 'auto' left it in float"),
        (Insight(latency=PROFILE), "b", "slower in int8: 0.41 ms against 0.3 ms"),
        (
            Insight(latency=PROFILE),
            "a",
            "left it in float; alone it takes 0.1 ms in int8 against 0.3 ms, conversions not counted",
        ),
        (
            Insight(divergence=FrozenMap({"b": 0.5, "a": 0.1, "c": 0.1, "d": 0.1}), latency=PROFILE),
            "b",
            "accuracy: in int8 alone it moves the outputs by 0.5 of their variance (rank 1 of 4); slower in int8: 0.41 ms",
        ),
        (
            Insight(divergence=DIVERGENCE, latency=PROFILE),
            "a",
            "accuracy: in int8 alone it moves the outputs by 0.5 of their variance (rank 1 of 4)",
        ),
        (
            Insight(divergence=DIVERGENCE, latency=PROFILE),
            "d",
            "latency: predicted not to pay beside its float neighbours; in int8 alone it moves the outputs by 0.0001",
        ),
        # Only its time in int8 was found: nothing is said about its speed.
        (Insight(latency=HALF), "c", "the strategy 'auto' left it in float"),
        (
            Insight(divergence=DIVERGENCE, latency=HALF),
            "c",
            "the strategy 'auto' left it in float; in int8 alone it moves the outputs by 0.001 of their variance",
        ),
        (
            Insight(divergence=DIVERGENCE, divergence_with_recipes=FrozenMap({"b": 0.25})),
            "b",
            "moves the outputs by 0.25",
        ),
    ],
)
def test_a_float_op_that_no_trial_measured_alone_gets_the_reason_of_the_probes(
    insight: Insight | None, op: str, reason: str
) -> None:
    found = _predicted(_run(insight), (op,))
    assert reason in found
    assert op != "c" or "ms" not in found


def test_the_reason_names_the_precision_that_the_op_would_have_had() -> None:
    insight = Insight(divergence=DIVERGENCE, latency=PROFILE)
    assert "accuracy: in int4 alone it moves" in _predicted(_run(insight, DType.UINT4), ("a",))
    assert "slower in int4: 0.41 ms" in _predicted(_run(insight, DType.INT4), ("b",))
