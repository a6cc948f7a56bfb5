"""The latency model, on a case small enough to add up by hand."""

from __future__ import annotations

import pytest

from neural_tune.values import (
    FLOAT,
    Capability,
    DType,
    FrozenMap,
    LatencyProfile,
    Mode,
    OpCapability,
    OpConfig,
    QuantSpec,
    Role,
)
from neural_tune.values.insight import Int8Regions

INT8 = OpConfig(mode=Mode.STATIC, activation=QuantSpec(dtype=DType.UINT8, symmetric=False))


def op(name, role, inputs, output):
    choices = (INT8, FLOAT) if role in (Role.ANCHOR, Role.COMPANION) else (FLOAT,)
    return OpCapability(name=name, type=name, role=role, choices=choices, inputs=inputs, outputs=(output,))


# x - a - relu - b - add(relu, b) - softmax
CAPABILITY = Capability(
    framework="test",
    runtime_version="1",
    instruction_set="any",
    ops=(
        op("a", Role.ANCHOR, ("x",), "ta"),
        op("relu", Role.PASS_THROUGH, ("ta",), "tr"),
        op("b", Role.ANCHOR, ("tr",), "tb"),
        op("add", Role.COMPANION, ("tr", "tb"), "ts"),
        op("softmax", Role.NEVER, ("ts",), "y"),
    ),
    inputs=("x",),
)
PROFILE = LatencyProfile(
    float_ms=FrozenMap({"a": 10.0, "relu": 1.0, "b": 20.0, "add": 2.0, "softmax": 5.0}),
    int8_ms=FrozenMap({"a": 3.0, "relu": 0.0, "b": 6.0, "add": 2.5}),
    border_ms=FrozenMap({"x": 0.1, "tr": 0.2, "tb": 0.3, "ts": 0.4}),
    leave_ms=FrozenMap({"tr": 0.02, "ts": 0.04}),
)


@pytest.mark.parametrize(
    ("int8", "expected"),
    [
        ((), 38.0),
        # x in, ts out; the relu goes with a
        (("a", "b", "add"), 3 + 0 + 6 + 2.5 + 5 + 0.1 + 0.04),
        # b and add read tr in float: it leaves once, not twice
        (("a",), 3 + 0 + 20 + 2 + 5 + 0.1 + 0.02),
        # tb has no price of its own for leaving: the same as entering
        (("b",), 10 + 1 + 6 + 2 + 5 + 0.2 + 0.3),
        # an addition without an int8 op before it joins nothing
        (("add",), 38.0),
        # b reads tr and so does add, which joins: tr enters once
        (("b", "add"), 10 + 1 + 6 + 2.5 + 5 + 0.2 + 0.04),
        # tr is there as codes, tb is not, and no int8 anchor reads it
        (("a", "add"), 3 + 0 + 20 + 2 + 5 + 0.1 + 0.02),
    ],
)
def test_prediction_adds_ops_and_borders(int8, expected):
    assert PROFILE.predict(CAPABILITY, int8) == pytest.approx(expected)


def test_a_result_written_in_int8_leaves_it():
    capability = Capability(
        framework="test", runtime_version="1", instruction_set="any", ops=CAPABILITY.ops[:1], inputs=("x",)
    )
    assert Int8Regions.of(capability, ("a",)).left == {"ta"}


def test_an_op_without_an_int8_time_keeps_its_float_time():
    profile = LatencyProfile(float_ms=PROFILE.float_ms, int8_ms=FrozenMap())
    assert profile.predict(CAPABILITY, ("a", "b", "add")) == pytest.approx(38.0)


def test_an_anchor_whose_float_time_is_unknown_is_not_free_in_float():
    floats = {name: value for name, value in PROFILE.float_ms.items() if name not in ("b", "softmax")}
    profile = LatencyProfile(float_ms=FrozenMap(floats), int8_ms=PROFILE.int8_ms)
    assert profile.predict(CAPABILITY, ()) == pytest.approx(10 + 1 + 6 + 2 + 0)
    assert profile.predict(CAPABILITY, ("b",)) == pytest.approx(profile.predict(CAPABILITY, ()))
    assert profile.compared(("a",)) == (10.0, 3.0)
    assert profile.compared(("a", "b")) is None
    assert profile.compared(("softmax",)) is None


@pytest.mark.parametrize("missing", ["float_ms", "int8_ms"])
def test_a_companion_that_was_folded_away_is_free_and_an_anchor_never_is(missing):
    times = {"float_ms": FrozenMap({"b": 3.0, "add": 2.0}), "int8_ms": FrozenMap({"b": 3.0, "add": 2.0})}
    profile = LatencyProfile(**{**times, missing: FrozenMap()})
    by_name = {op.name: op for op in CAPABILITY.ops}
    assert profile.times(by_name["b"]) == (3.0, 3.0)
    assert profile.times(by_name["add"]) == ((0.0, 2.0) if missing == "float_ms" else (2.0, 2.0))
