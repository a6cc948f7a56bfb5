"""The recipe: what is written comes back, and what a person breaks is told to her."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_tune import recipe
from neural_tune.errors import ConfigError
from neural_tune.space import TuningSpace
from neural_tune.values import (
    FLOAT,
    FLOAT_CANDIDATE,
    Candidate,
    Capability,
    DType,
    Granularity,
    Mode,
    Observer,
    OpCapability,
    OpConfig,
    QuantSpec,
    Role,
    TensorRange,
)

ACTIVATION = QuantSpec(dtype=DType.UINT8, symmetric=False)
WEIGHT = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)
FULL = OpConfig(mode=Mode.STATIC, activation=ACTIVATION, weight=WEIGHT)
TENSOR = OpConfig(mode=Mode.STATIC, activation=ACTIVATION, weight=QuantSpec(dtype=DType.INT8))
CLIPPED = OpConfig(
    mode=Mode.STATIC,
    activation=QuantSpec(dtype=DType.UINT8, symmetric=False, observer=Observer.PERCENTILE, percentile=99.9),
    weight=WEIGHT,
)
LIGHT = OpConfig(mode=Mode.STATIC, activation=ACTIVATION)
CHOICES = {"Conv": (FULL, TENSOR, CLIPPED, FLOAT), "Gemm": (FULL, TENSOR, FLOAT), "MaxPool": (LIGHT, FLOAT)}


def space_of(ops: list[tuple[str, str, str]]) -> TuningSpace:
    """Return a space from (name, type, group); a type without choices stays float."""
    return TuningSpace.of(
        Capability(
            framework="toy",
            runtime_version="1",
            instruction_set="none",
            recipes=("bias_correction", "equalize"),
            ops=tuple(
                OpCapability(
                    name=name,
                    type=kind,
                    role=Role.ANCHOR if kind in CHOICES else Role.NEVER,
                    choices=CHOICES.get(kind, (FLOAT,)),
                    group=group,
                    why="" if kind in CHOICES else "no int8 kernel",
                    inputs=(f"{name}.in",),
                    outputs=(f"{name}.out",),
                )
                for name, kind, group in ops
            ),
        )
    )


NET = space_of(
    [
        ("layer1.conv", "Conv", ""),
        ("layer1/conv(2)", "Conv", ""),
        ("pool", "MaxPool", ""),
        ("soft", "Softmax", ""),
        ("fc", "Gemm", ""),
    ]
)
HEAD = "version: 1\nprecisions:\n  p1: {mode: static, activation: {dtype: uint8, symmetric: false}, weight: {dtype: int8, granularity: per_channel}}\nrules:\n"

names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Candidate, TuningSpace]:
    """Draw a space with nasty names and groups, and a candidate of it."""
    kinds = st.sampled_from([*CHOICES, "Softmax"])
    drawn = draw(st.lists(st.tuples(names, kinds), min_size=1, max_size=12, unique_by=lambda op: op[0]))
    grouped = draw(st.booleans())
    space = space_of([(name, kind, f"all {kind}" if grouped and kind == "Gemm" else "") for name, kind in drawn])
    chosen = {group.name: draw(st.sampled_from(group.choices)) for group in space.groups}
    tensors = draw(st.sets(st.sampled_from([f"{name}.in" for name, _ in drawn])))
    candidate = space.candidate(chosen)
    ranges = [TensorRange(tensor=name, observer=draw(st.sampled_from(Observer))) for name in tensors]
    recipes = draw(st.sets(st.sampled_from(space.capability.recipes)))
    return Candidate.of(candidate.ops, ranges, recipes), space


@given(candidates())
def test_what_is_written_comes_back_equal(drawn: tuple[Candidate, TuningSpace]) -> None:
    candidate, space = drawn
    text = recipe.to_recipe(candidate, space, {"reason": "two\nlines: # and [signs"})
    assert recipe.from_recipe(text, space) == candidate


@given(candidates())
def test_a_recipe_has_no_more_rules_than_default_types_and_exceptions(drawn: tuple[Candidate, TuningSpace]) -> None:
    candidate, space = drawn
    kinds = {op.type for op in space.capability.ops}
    rules = [
        line for line in recipe.to_recipe(candidate, space).splitlines() if line.startswith("  - ") and "use:" in line
    ]
    assert len(rules) <= 1 + len(kinds) + len(space.op_names) // 2


@pytest.mark.parametrize(
    "name", ["\x85", "a\u2028b", "\x00", "größe", "a\r\nb", " ", "~", "null", "3", "a: b #c", "\ufeff"]
)
def test_a_nasty_name_comes_back_and_keeps_its_line(name: str) -> None:
    space = space_of([(name, "Conv", ""), ("x", "Conv", ""), ("y", "Conv", "")])
    candidate = Candidate.of({"x": FULL, "y": FULL})
    text = recipe.to_recipe(candidate, space, {"note\x00": "\x00\x85 odd"})
    assert recipe.from_recipe(text, space) == candidate
    assert all(line.isprintable() for line in text.split("\n"))


def test_full_int8_with_one_float_op_takes_three_rules_and_reads_well() -> None:
    candidate = NET.preferred().with_ops({"layer1.conv": FLOAT})
    text = recipe.to_recipe(candidate, NET, {"neural_tune": "0.1.0", "model": "abc"})
    assert text.startswith(
        "# A recipe of neural_tune: which op runs in which precision (neural_tune.recipe.read gives the candidate back).\n# neural_tune: 0.1.0\n# model: abc\n"
    )
    assert text.splitlines()[-4:] == [
        "rules:  # in order: the last rule that matches an op decides",
        "  - {use: p1}",
        "  - {type: MaxPool, use: p2}",
        "  - {op: layer1\\.conv, use: float}",
    ]
    assert "# static: uint8 asym per_tensor, weight int8 sym per_channel" in text


def test_the_last_matching_rule_decides() -> None:
    text = (
        HEAD
        + "  - {use: float}\n  - {type: Conv, use: p1}\n  - {op: 'layer1.*', use: float}\n  - {op: 'layer1\\.conv', use: p1}\n"
    )
    assert dict(recipe.from_recipe(text, NET).ops) == {"layer1.conv": FULL}


def test_an_op_that_no_rule_matches_stays_float() -> None:
    assert recipe.from_recipe("version: 1\nrules: []\n", NET) == FLOAT_CANDIDATE


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    candidate = NET.preferred()
    recipe.write(tmp_path / "recipe.yaml", candidate, NET, {"framework": "toy"})
    assert recipe.read(tmp_path / "recipe.yaml", NET) == candidate


def test_a_candidate_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"quantizes \['elsewhere'\]"):
        recipe.to_recipe(Candidate.of({"elsewhere": FULL}), NET)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("  - {op: 'layer2.*', use: p1}", "recipe.yaml:5: rules[0].op: 'layer2.*' matches no op of the model"),
        ("  - {op: fcc, use: p1}", "recipe.yaml:5: rules[0].op: 'fcc' matches no op of the model (did you mean 'fc'?)"),
        ("  - {type: Conv2, use: p1}", "rules[0].type: 'Conv2' matches no op of the model (did you mean 'Conv'?)"),
        ("  - {op: soft, use: p1}", "rules[0]: 'soft' (Softmax) can only be float here: no int8 kernel"),
        ("  - {op: pool, use: p1}", "on 'pool' (MaxPool), but there it may be: static: uint8 asym per_tensor; float"),
        ("  - {op: fc, use: p2}", "rules[0].use: found 'p2'; expected one of float, p1"),
        ("  - {op: '(', use: p1}", "rules[0].op: found '(', expected a regular expression"),
        ("  - {op: fc}", "rules[0]: found {'op': 'fc'}, expected {use: precision}"),
        ("  - {op: fc, use: float}\nrulez: 1", "recipe.yaml:6: rulez: unknown key (did you mean 'rules'?)"),
        (
            "  - {op: fc, use: float}\nrecipes: [equalise]",
            "recipe.yaml:6: recipes[0]: found 'equalise' (did you mean 'equalize'?)",
        ),
        (
            "  - {op: fc, use: float}\nranges: [{tensor: fc.inn, observer: kl}]",
            "the model has no tensor 'fc.inn' (did you mean 'fc.in'?)",
        ),
        (
            "  - {op: fc, use: float}\nranges: [{tensor: fc.in, observer: klo}]",
            "ranges[0].observer: found 'klo', expected one of",
        ),
        ("  - {use: float}\nversion: 1", "recipe.yaml:6: version: found twice, first in line 1; keep one"),
    ],
)
def test_a_broken_recipe_says_what_and_where(rules: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.from_recipe(HEAD + rules + "\n", NET)
    assert expected in str(caught.value)


def test_every_fault_is_reported_at_once() -> None:
    text = "version: 2\nprecisions:\n  p1: {mode: statik}\nrules:\n  - {op: fc, use: p9}\nextra: 1\n"
    with pytest.raises(ConfigError) as caught:
        recipe.from_recipe(text, NET)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["extra", "version", "precisions.p1.mode", "rules[0].use"]


def test_ops_of_one_group_cannot_be_torn_apart() -> None:
    space = space_of([("a", "Gemm", "tied"), ("b", "Gemm", "tied")])
    with pytest.raises(ConfigError, match="the ops a, b must share one precision, but the rules give them 2"):
        recipe.from_recipe(HEAD + "  - {use: p1}\n  - {op: b, use: float}\n", space)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.read(tmp_path / "none.yaml", NET)
