"""Canonical JSON: every value survives the round trip, and digests do not move."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_tune.errors import ConfigError
from neural_tune.values import (
    FLOAT,
    AccuracyCriterion,
    Baseline,
    Candidate,
    Capability,
    DType,
    FrozenMap,
    Granularity,
    History,
    Insight,
    LatencyProfile,
    Mode,
    Objective,
    Objectives,
    Observer,
    OpCapability,
    OpConfig,
    Origin,
    ProbeRequest,
    Proposal,
    QuantSpec,
    Role,
    StopRule,
    TensorRange,
    Trial,
    TrialResult,
    TrialStatus,
    Verdict,
    canonical_json,
    digest,
    from_jsonable,
    to_jsonable,
)

names = st.text(max_size=12)
numbers = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=10**9)


def frozen(items):
    return st.dictionaries(names, items, max_size=3).map(FrozenMap)


def tuples(items):
    return st.lists(items, max_size=3).map(tuple)


@st.composite
def specs(draw):
    granularity = draw(st.sampled_from(Granularity))
    observer = draw(st.sampled_from(Observer))
    share = st.none() | st.floats(min_value=50, max_value=100, exclude_min=True)
    return QuantSpec(
        dtype=draw(st.sampled_from(DType)),
        symmetric=draw(st.booleans()),
        granularity=granularity,
        axis=draw(st.none() | st.integers(-4, 4)),
        group_size=draw(st.integers(1, 256)) if granularity is Granularity.PER_GROUP else None,
        observer=observer,
        percentile=draw(share) if observer is Observer.PERCENTILE else None,
        reduce_range=draw(st.booleans()),
    )


maybe_spec = st.none() | specs()
configs = st.builds(OpConfig, mode=st.sampled_from(Mode), activation=maybe_spec, weight=maybe_spec, output=maybe_spec)
ranges = st.builds(TensorRange, tensor=names, observer=st.sampled_from(Observer), percentile=st.none() | finite)
candidates = st.builds(
    Candidate.of, st.dictionaries(names, configs, max_size=3), tuples(ranges), st.lists(names, max_size=3)
)
criteria = st.builds(
    AccuracyCriterion,
    st.booleans(),
    st.sampled_from(["relative", "absolute"]),
    st.floats(min_value=0, max_value=10),
    st.just(FrozenMap()) | st.dictionaries(names, st.builds(AccuracyCriterion), max_size=2).map(FrozenMap),
)
objectives = st.builds(
    Objective,
    st.text(min_size=1, max_size=8),
    st.floats(min_value=0.001, max_value=100),
    st.booleans(),
)
trials = st.builds(Trial, number=counts, candidate=candidates, origin=st.builds(Origin, names, names))
results = st.builds(
    TrialResult,
    trial=trials,
    status=st.sampled_from(TrialStatus),
    metrics=frozen(numbers),
    bounds=frozen(numbers),
    objectives=frozen(numbers),
    is_accepted=st.booleans(),
    reason=names,
    samples=counts,
    passes=finite,
    durations=frozen(finite),
    error=names,
    reused=counts,
)
baselines = st.builds(
    Baseline, metrics=frozen(numbers), objectives=frozen(numbers), samples=counts, passes=finite, seconds=finite
)
ops = st.builds(
    OpCapability,
    name=names,
    type=names,
    role=st.sampled_from(Role),
    choices=st.lists(configs.filter(lambda config: config != FLOAT), max_size=2, unique=True).map(
        lambda c: (*c, FLOAT)
    ),
    extra=tuples(configs),
    group=names,
    why=names,
    inputs=tuples(names),
    outputs=tuples(names),
    parameters=counts,
)
profiles = st.builds(
    LatencyProfile,
    float_ms=frozen(numbers),
    int8_ms=frozen(numbers),
    border_ms=frozen(numbers),
    leave_ms=frozen(numbers),
    batch_size=counts,
    threads=counts,
)
insights = st.builds(
    Insight,
    probes=tuples(names),
    curvature=frozen(numbers),
    divergence=frozen(numbers),
    full=numbers | st.just(math.nan),
    recipes=tuples(names),
    divergence_with_recipes=frozen(numbers),
    latency=st.none() | profiles,
    samples=counts,
    forwards=counts,
)
VALUES = {
    LatencyProfile: profiles,
    Insight: insights,
    QuantSpec: specs(),
    OpConfig: configs,
    TensorRange: ranges,
    Candidate: candidates,
    AccuracyCriterion: criteria,
    Verdict: st.builds(Verdict, is_met=st.booleans(), losses=frozen(numbers), slack=numbers, reason=names),
    Objective: objectives,
    Objectives: st.builds(
        Objectives,
        st.lists(objectives, min_size=1, max_size=3, unique_by=lambda item: item.name).map(tuple),
        st.booleans(),
    ),
    StopRule: st.builds(
        StopRule,
        max_trials=st.integers(1, 10**6),
        timeout=st.floats(min_value=0, max_value=1e9),
        max_passes=st.none() | st.floats(min_value=0.01, max_value=1e6),
    ),
    Origin: st.builds(Origin, names, names),
    Proposal: st.builds(Proposal, candidates, names),
    ProbeRequest: st.builds(ProbeRequest, tuples(names)),
    Trial: trials,
    TrialResult: results,
    Baseline: baselines,
    History: st.builds(
        History,
        baseline=baselines,
        criterion=criteria,
        results=tuples(results),
        pending=tuples(trials),
        insight=st.none() | insights,
    ),
    OpCapability: ops,
    Capability: st.builds(
        Capability,
        framework=names,
        runtime_version=names,
        instruction_set=names,
        ops=st.lists(ops, max_size=3, unique_by=lambda item: item.name).map(tuple),
        inputs=tuples(names),
        recipes=tuples(names),
        notes=tuples(names),
    ),
}


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_value_survives_the_round_trip_through_text(kind, data):
    value = data.draw(VALUES[kind])
    text = canonical_json(value)
    again = from_jsonable(kind, json.loads(text))
    assert again == value
    assert hash(again) == hash(value)
    assert type(again) is type(value)
    assert canonical_json(again) == text
    assert digest(again) == digest(value)


def test_every_exported_value_type_is_covered():
    import dataclasses

    from neural_tune import values

    exported = {item for item in vars(values).values() if isinstance(item, type) and dataclasses.is_dataclass(item)}
    assert exported == set(VALUES)


INT8 = OpConfig(
    mode=Mode.STATIC,
    activation=QuantSpec(dtype=DType.UINT8, symmetric=False),
    weight=QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL, axis=0),
)
CANDIDATE = Candidate.of(
    {"conv1": INT8, "/layer1/conv.1": INT8, "fc": FLOAT},
    [TensorRange(tensor="x", observer=Observer.KL)],
    ["smooth_quant", "bias_correction"],
)


def test_canonical_text_by_hand():
    spec = (
        '{"activation":{"dtype":"uint8","symmetric":false},"mode":"static",'
        '"weight":{"axis":0,"dtype":"int8","granularity":"per_channel"}}'
    )
    assert canonical_json(CANDIDATE) == (
        f'{{"ops":{{"/layer1/conv.1":{spec},"conv1":{spec}}},'
        '"ranges":[{"observer":"kl","tensor":"x"}],"recipes":["bias_correction","smooth_quant"]}'
    )


def test_digests_are_pinned():
    """Journals and artifacts on disk are named by these: a change here orphans every run of every user."""
    assert CANDIDATE.digest == "e522b24e78a3e528"
    assert Candidate().digest == digest({}) == "44136fa355b3678a"
    assert digest(AccuracyCriterion(tolerable_loss=0.005, criterion="absolute")) == "0e109988f1671f9c"


def test_digest_is_the_same_in_another_process_with_another_hash_seed():
    code = "from neural_tune.values import *; print(Candidate.of({'b': OpConfig(mode=Mode.DYNAMIC), 'a': OpConfig(mode=Mode.CAST)}).digest)"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    expected = Candidate.of({"a": OpConfig(mode=Mode.CAST), "b": OpConfig(mode=Mode.DYNAMIC)}).digest
    assert runs == {f"{expected}\n"}


def test_digest_ignores_order_and_float_ops_but_nothing_else():
    assert Candidate.of({"b": INT8, "a": INT8, "c": FLOAT}).digest == Candidate.of({"a": INT8, "b": INT8}).digest
    different = {
        Candidate.of({"a": INT8}).digest,
        Candidate.of({"b": INT8}).digest,
        Candidate.of({"a": OpConfig(mode=Mode.DYNAMIC)}).digest,
        Candidate.of({"a": INT8}, recipes=["x"]).digest,
        Candidate.of({"a": INT8}, [TensorRange(tensor="t", observer=Observer.KL)]).digest,
    }
    assert len(different) == 5


def test_numbers_that_are_not_finite_are_words():
    metrics = FrozenMap({"a": math.nan, "b": math.inf, "c": -math.inf})
    assert canonical_json(metrics) == '{"a":"nan","b":"inf","c":"-inf"}'
    again = from_jsonable(FrozenMap[float], {"a": "nan", "b": "inf", "c": "-inf"})
    assert math.isnan(again["a"])
    assert (again["b"], again["c"]) == (math.inf, -math.inf)


def test_default_of_another_type_is_written_out():
    @dataclass(frozen=True)
    class Value:
        flag: bool = False
        count: int = 0

    assert to_jsonable(Value()) == {}
    assert to_jsonable(Value(flag=0, count=False)) == {"flag": 0, "count": False}


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (QuantSpec, {"dtype": "int9"}, r"\$\.dtype: found 'int9', expected one of \['int4'"),
        (QuantSpec, {"dtype": "int8", "symmetric": "yes"}, r"\$\.symmetric: found 'yes', expected bool"),
        (QuantSpec, {"dtype": "int8", "axis": 1.5}, r"\$\.axis: found 1\.5, expected int"),
        (QuantSpec, {"dtype": "int8", "axis": True}, r"\$\.axis: found True, expected an integer"),
        (QuantSpec, {"dtype": "int8", "color": 1}, r"\$: found \['color'\], expected only fields of QuantSpec"),
        (QuantSpec, {}, r"\$: .*missing 1 required keyword-only argument: 'dtype'"),
        (Candidate, {"ops": {"c": {"mode": "magic"}}}, r"\$\.ops\.c\.mode: found 'magic'"),
        (Candidate, {"ops": []}, r"\$\.ops: found \[\], expected an object"),
        (Candidate, {"recipes": "all"}, r"\$\.recipes: found 'all', expected an array"),
        (Candidate, {"ranges": [{"tensor": "t", "observer": 3}]}, r"\$\.ranges\[0\]\.observer: found 3"),
        (AccuracyCriterion, {"criterion": "both"}, r"\$\.criterion: found 'both', expected one of"),
        (AccuracyCriterion, {"tolerable_loss": "big"}, r"\$\.tolerable_loss: found 'big', expected a number"),
        (AccuracyCriterion, [], r"\$: found \[\], expected an object with the fields of AccuracyCriterion"),
    ],
)
def test_misfit_carries_the_path_the_found_and_the_expected(kind, data, message):
    with pytest.raises(ConfigError, match=message):
        from_jsonable(kind, data)


def test_things_without_a_json_form_are_refused():
    for thing in (object(), {1, 2}, QuantSpec, b"bytes"):
        with pytest.raises(TypeError, match="no canonical JSON form"):
            to_jsonable(thing)
