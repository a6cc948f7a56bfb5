"""TuningSpace: which rule wins, what an override may not do, and the space as a set."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_tune.errors import ConfigError
from neural_tune.space import Restriction, Rule, Scope, SpecRestriction, TuningSpace
from neural_tune.testing.spaces import INT8, choices, op, with_granularity, with_observer
from neural_tune.values import (
    FLOAT,
    FLOAT_CANDIDATE,
    Candidate,
    Capability,
    DType,
    Granularity,
    Mode,
    Observer,
    Role,
)

KL = with_observer(INT8, Observer.KL)
PER_TENSOR = with_granularity(INT8, Granularity.PER_TENSOR)
MANY = choices(Observer.KL, per_tensor=True)
SIGNED = replace(INT8, activation=replace(INT8.activation, dtype=DType.INT8, symmetric=True))


def capability(*ops):
    return Capability(framework="test", runtime_version="1", instruction_set="none", ops=ops)


MODEL = capability(
    op("/layer1/conv.1", "Conv", MANY),
    op("/layer1/convX1", "Conv", MANY),
    op("relu", "Relu", (FLOAT,), role=Role.PASS_THROUGH),
    op("fc", "Gemm", MANY),
)


def observer(*allowed):
    return Restriction(activation=SpecRestriction(observer=allowed))


def granularity(*allowed):
    return Restriction(weight=SpecRestriction(granularity=allowed))


EXCLUDE = Restriction(keep_float=True)


def model_wise(restriction):
    return Rule(scope=Scope.MODEL, pattern=".*", restriction=restriction, source="model-wise")


def by_type(pattern, restriction):
    return Rule(scope=Scope.OP_TYPE, pattern=pattern, restriction=restriction, source=f"op_type_dict[{pattern!r}]")


def by_name(pattern, restriction):
    return Rule(scope=Scope.OP_NAME, pattern=pattern, restriction=restriction, source=f"op_name_dict[{pattern!r}]")


def observers(space, name):
    group = next(group for group in space.groups if name in group.ops)
    return {config.activation.observer for config in group.choices[:-1]}


def test_without_rules_every_quantizable_op_keeps_its_choices():
    space = TuningSpace.of(MODEL)
    assert [group.name for group in space.groups] == ["/layer1/conv.1", "/layer1/convX1", "fc"]
    assert all(group.choices == MANY for group in space.groups)
    assert space.fixed == {}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_model_wise_yields_to_op_type_and_op_type_to_op_name_in_any_order(order):
    rules = [
        model_wise(observer(Observer.MINMAX)),
        by_type("Conv", observer(Observer.KL)),
        by_name("/layer1/convX1", observer(Observer.MINMAX, Observer.KL)),
    ]
    space = TuningSpace.of(MODEL, [rules[place] for place in order])
    assert observers(space, "fc") == {Observer.MINMAX}
    assert observers(space, "/layer1/conv.1") == {Observer.KL}
    assert observers(space, "/layer1/convX1") == {Observer.MINMAX, Observer.KL}


def test_within_a_scope_the_last_match_wins_field_by_field():
    rules = [
        by_type(
            "Conv",
            Restriction(
                activation=SpecRestriction(observer=(Observer.KL,)),
                weight=SpecRestriction(granularity=(Granularity.PER_TENSOR,)),
            ),
        ),
        by_type("Con.*", observer(Observer.MINMAX)),
    ]
    space = TuningSpace.of(MODEL, rules)
    assert space.groups[0].choices == (PER_TENSOR, FLOAT), "the observer is overridden, the granularity stays"
    assert TuningSpace.of(MODEL, rules[::-1]).groups[0].choices == (with_observer(PER_TENSOR, Observer.KL), FLOAT)


def test_float_stays_the_last_choice_whatever_the_rules_say():
    space = TuningSpace.of(
        MODEL, [model_wise(observer(Observer.KL)), by_type("Conv", granularity(Granularity.PER_TENSOR))]
    )
    assert all(group.choices[-1] == FLOAT and len(group.choices) >= 2 for group in space.groups)


def test_a_plain_name_with_special_characters_is_itself():
    space = TuningSpace.of(MODEL, [by_name("/layer1/conv.1", observer(Observer.KL))])
    assert observers(space, "/layer1/conv.1") == {Observer.KL}
    plus = capability(op("a+b[0](x)", "Conv", MANY), op("b"))
    assert observers(TuningSpace.of(plus, [by_name("a+b[0](x)", observer(Observer.KL))]), "a+b[0](x)") == {Observer.KL}


def test_a_regex_matches_the_whole_name():
    assert not by_name("conv", EXCLUDE).matches(op("conv1"))
    assert not by_name("onv1", EXCLUDE).matches(op("conv1"))
    assert by_name("conv\\d+", EXCLUDE).matches(op("conv12"))
    assert by_type("Conv|Gemm", EXCLUDE).matches(op("x", "Gemm"))
    assert not by_type("Conv|Gemm", EXCLUDE).matches(op("x", "ConvTranspose"))


def test_a_plain_name_also_works_as_the_regex_that_it_is():
    """Documented price of taking both: the dot of "/layer1/conv.1" is any character for other names."""
    assert by_name("/layer1/conv.1", EXCLUDE).matches(op("/layer1/convX1"))
    assert not by_name(re.escape("/layer1/conv.1"), EXCLUDE).matches(op("/layer1/convX1"))


def test_excluded_ops_are_fixed_with_the_rule_as_the_reason():
    space = TuningSpace.of(MODEL, [by_type("Conv", EXCLUDE)])
    assert [group.name for group in space.groups] == ["fc"]
    assert space.fixed == {
        "/layer1/conv.1": "user rule: op_type_dict['Conv']",
        "/layer1/convX1": "user rule: op_type_dict['Conv']",
    }
    assert "relu" not in space.fixed, "an op without choices is not the user's doing"


def test_a_stronger_rule_takes_an_exclusion_back():
    back = Restriction(keep_float=False)
    space = TuningSpace.of(MODEL, [by_type("Conv", EXCLUDE), by_name("/layer1/convX1", back)])
    assert [group.name for group in space.groups] == ["/layer1/convX1", "fc"]


def test_a_rule_that_leaves_nothing_is_an_error_that_names_rule_op_and_offer():
    with pytest.raises(ConfigError) as caught:
        TuningSpace.of(MODEL, [by_type("Gemm", observer(Observer.MSE))])
    message = str(caught.value)
    assert "op_type_dict['Gemm']: leaves op 'fc' (Gemm) no precision but float" in message
    assert "static: uint8 asym per_tensor kl, weight int8 sym per_channel" in message
    assert "exclude the op to keep it in float" in message


def test_all_errors_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        TuningSpace.of(MODEL, [model_wise(Restriction(mode=(Mode.DYNAMIC,)))])
    assert len(str(caught.value).splitlines()) == 3


def test_a_type_rule_that_matches_nothing_is_a_notice():
    space = TuningSpace.of(MODEL, [by_type("LSTM", EXCLUDE)])
    assert space.notices == ("op_type_dict['LSTM']: the model has no op of type 'LSTM' (it has Conv, Gemm, Relu)",)
    assert TuningSpace.of(MODEL).notices == ()


def test_a_name_rule_that_matches_nothing_is_an_error_with_similar_names():
    with pytest.raises(ConfigError) as caught:
        TuningSpace.of(MODEL, [by_name("/layer1/convv1", EXCLUDE), by_name("nowhere at all", EXCLUDE)])
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "op_name_dict['/layer1/convv1']: '/layer1/convv1' matches no op of the model; similar names: "
    )
    assert "/layer1/convX1" in first
    assert second == "op_name_dict['nowhere at all']: 'nowhere at all' matches no op of the model"


def test_a_broken_regex_is_refused_when_it_is_written():
    with pytest.raises(ConfigError, match=r"op_name_dict\['conv\['\]: 'conv\[' is no regular expression"):
        by_name("conv[", EXCLUDE)


def test_extra_choices_count_only_where_a_rule_asks_for_them():
    model = capability(replace(op("conv"), extra=(SIGNED,)), replace(op("gather", "Gather", (FLOAT,)), extra=(INT8,)))
    assert [group.choices for group in TuningSpace.of(model).groups] == [(INT8, FLOAT)]
    signed = Restriction(activation=SpecRestriction(dtype=(DType.INT8,)))
    assert TuningSpace.of(model, [by_name("conv", signed)]).groups[0].choices == (SIGNED, FLOAT)
    asked = TuningSpace.of(model, [by_type("Gather", Restriction(mode=(Mode.STATIC,)))])
    assert [group.name for group in asked.groups] == ["conv", "gather"]


def test_precision_is_the_word_for_what_all_groups_prefer():
    four = replace(INT8, mode=Mode.WEIGHT_ONLY, weight=replace(INT8.weight, dtype=DType.UINT4), output=None)
    assert TuningSpace.of(MODEL).precision == "int8"
    assert TuningSpace.of(capability(op("fc", offered=(four, FLOAT)))).precision == "int4"
    assert TuningSpace.of(capability(op("fc", offered=(four, FLOAT)), op("conv"))).precision == "low precision"
    assert FLOAT.word == "float"
    assert replace(INT8, weight=None).word == "int8"
    assert replace(INT8, activation=replace(INT8.activation, dtype=DType.UINT16)).word == "int16"


# Groups


def test_members_of_a_group_share_one_choice():
    model = capability(op("a", group="g"), op("b"), op("c", "Add", MANY, role=Role.COMPANION, group="g"))
    space = TuningSpace.of(model)
    assert [(group.name, group.ops) for group in space.groups] == [("g", ("a", "c")), ("b", ("b",))]
    assert space.groups[0].choices == (INT8, FLOAT), "what both offer, in the order of the first"
    assert space.groups[0].role is Role.ANCHOR
    assert space.preferred().ops.keys() == {"a", "b", "c"}
    assert not space.contains(Candidate.of({"a": INT8}))
    assert not space.contains(Candidate.of({"a": INT8, "c": KL}))
    assert space.contains(Candidate.of({"a": INT8, "c": INT8}))


def test_a_member_that_is_excluded_takes_its_group_along_and_says_so():
    model = capability(op("a", group="g"), op("b"), op("c", group="g"))
    space = TuningSpace.of(model, [by_name("c", EXCLUDE)])
    assert [group.name for group in space.groups] == ["b"]
    assert space.fixed == {
        "c": "user rule: op_name_dict['c']",
        "a": "shares a choice with 'c' (user rule: op_name_dict['c'])",
    }


@pytest.mark.parametrize("role", [Role.NEVER, Role.COMPANION])
def test_a_member_that_has_float_only_takes_its_group_along_and_says_so(role):
    stuck = replace(op("c", "LSTM", (FLOAT,), role=role, group="g"), why="no int8 kernel")
    space = TuningSpace.of(capability(op("a", group="g"), op("b"), stuck))
    assert [group.name for group in space.groups] == ["b"]
    assert space.fixed == {"a": "shares a choice with 'c' (no int8 kernel)"}


def test_a_member_with_extra_choices_holds_its_group_until_a_rule_asks_for_them():
    model = capability(op("a", group="g"), replace(op("c", "Gather", (FLOAT,), group="g"), extra=(INT8,)))
    assert TuningSpace.of(model).fixed == {
        "a": "shares a choice with 'c' (it offers float only, unless a rule asks for more)"
    }
    asked = TuningSpace.of(model, [by_name("c", Restriction(mode=(Mode.STATIC,)))])
    assert [group.ops for group in asked.groups] == [("a", "c")]


def test_a_pass_through_member_holds_nobody():
    relu = op("relu", "Relu", (FLOAT,), role=Role.PASS_THROUGH, group="g")
    space = TuningSpace.of(capability(op("a", group="g"), relu, op("c", group="g")))
    assert [group.ops for group in space.groups] == [("a", "c")]


def test_a_group_without_a_common_choice_is_an_error():
    model = capability(op("a", "Conv", (KL, FLOAT), group="g"), op("b", "Conv", (INT8, FLOAT), group="g"))
    with pytest.raises(ConfigError, match=r"group 'g' \(a, b\): its ops have no int8 choice in common"):
        TuningSpace.of(model)


# The space as a set


@st.composite
def spaces(draw):
    kinds = st.sampled_from([MANY, (INT8, FLOAT), (INT8, KL, FLOAT), (FLOAT,)])
    shape = draw(st.lists(st.tuples(kinds, st.sampled_from(["", "", "g"])), min_size=1, max_size=4))
    return TuningSpace.of(
        capability(
            *(
                op(f"o{place}", "Conv", offered, group=group if offered[1:] else "")
                for place, (offered, group) in enumerate(shape)
            )
        )
    )


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_size_equals_the_enumeration_which_holds_no_float_and_no_doubles(space):
    everything = list(space)
    assert len(everything) == space.size
    assert len(set(everything)) == space.size
    assert len({candidate.digest for candidate in everything}) == space.size
    assert FLOAT_CANDIDATE not in everything
    assert all(space.contains(candidate) for candidate in everything)
    if everything:
        assert everything[0] == space.preferred()


@settings(max_examples=40, deadline=None)
@given(spaces(), st.randoms(use_true_random=False))
def test_neighbours_are_exactly_the_candidates_that_differ_in_one_group(space, random):
    everything = [*space, FLOAT_CANDIDATE]
    centre = random.choice(everything)

    def distance(other):
        return sum(space.choice_of(centre, group) != space.choice_of(other, group) for group in space.groups)

    found = list(space.neighbours(centre))
    assert len(set(found)) == len(found)
    assert set(found) == {other for other in everything if distance(other) == 1}


def test_iteration_varies_the_last_group_fastest_and_is_lazy():
    space = TuningSpace.of(capability(*(op(f"o{place}", "Conv", MANY) for place in range(100))))
    first, second = itertools.islice(space, 2)
    assert first == space.preferred()
    assert second == space.with_choice(first, space.groups[-1], MANY[1])
    assert space.size == 5**100 - 1


def test_contains_knows_foreign_ops_and_choices():
    space = TuningSpace.of(MODEL)
    assert space.contains(FLOAT_CANDIDATE)
    assert not space.contains(Candidate.of({"relu": INT8}))
    assert not space.contains(Candidate.of({"unknown": INT8}))
    assert not space.contains(Candidate.of({"fc": SIGNED}))


def test_an_unknown_group_is_a_key_error():
    with pytest.raises(KeyError):
        TuningSpace.of(MODEL).candidate({"unknown": INT8})
