"""Options are the single decisions in which a choice differs from the preferred one."""

from __future__ import annotations

from dataclasses import replace

from neural_tune.testing.spaces import INT8, choices, op, space_of
from neural_tune.values import FLOAT, DType, Mode, Observer, OpConfig, QuantSpec
from neural_tune_strategies.options import options_of


def _labels(*offered: OpConfig) -> list[str]:
    return [option.label for option in options_of(space_of(op("conv", "Conv", (*offered, FLOAT))))]


def _activation(**changes) -> OpConfig:
    return replace(INT8, activation=replace(INT8.activation, **changes))


def test_int8_alone_has_no_options():
    assert _labels(INT8) == []


def test_a_product_of_choices_becomes_a_sum_of_options():
    product = choices(Observer.KL, Observer.MSE, Observer.PERCENTILE, per_tensor=True)
    assert len(product) == 2 * 4 + 1
    assert _labels(*product[:-1]) == [
        "activation observer kl",
        "activation observer mse",
        "activation observer percentile",
        "weight granularity per_tensor",
    ]


def test_a_combination_whose_parts_are_not_on_offer_is_an_option_itself():
    combined = replace(_activation(observer=Observer.KL), weight=replace(INT8.weight, dtype=DType.INT4))
    assert _labels(INT8, combined) == ["activation observer kl, weight format int4 sym"]
    assert _labels(INT8, _activation(observer=Observer.KL), combined) == [
        "activation observer kl",
        "activation observer kl, weight format int4 sym",
    ]


def test_two_percentiles_are_two_options():
    low = _activation(observer=Observer.PERCENTILE, percentile=99.9)
    high = _activation(observer=Observer.PERCENTILE)
    assert _labels(INT8, high, low) == ["activation observer percentile", "activation observer percentile 99.9"]


def test_another_format_is_one_decision_with_its_scheme():
    assert _labels(INT8, _activation(dtype=DType.INT8, symmetric=True)) == ["activation format int8 sym"]


def test_another_mode_is_an_option():
    dynamic = OpConfig(mode=Mode.DYNAMIC, activation=INT8.activation, weight=INT8.weight)
    weight_only = OpConfig(mode=Mode.WEIGHT_ONLY, weight=INT8.weight)
    assert _labels(INT8, dynamic, weight_only) == ["mode dynamic", "mode weight_only"]


def test_inputs_and_output_of_an_op_share_the_activation_option():
    spec = QuantSpec(dtype=DType.UINT8, symmetric=False)
    kl = replace(spec, observer=Observer.KL)
    add = OpConfig(mode=Mode.STATIC, activation=spec, output=spec)
    space = space_of(
        op("conv", "Conv", (INT8, _activation(observer=Observer.KL), FLOAT)),
        op("add", "Add", (add, replace(add, activation=kl, output=kl), FLOAT)),
    )
    (option,) = options_of(space)
    assert (option.label, option.types, set(option.configs)) == (
        "activation observer kl",
        ("Conv", "Add"),
        {"conv", "add"},
    )


def test_a_choice_that_only_quantizes_less_is_an_option():
    spec = QuantSpec(dtype=DType.UINT8, symmetric=False)
    both = OpConfig(mode=Mode.STATIC, activation=spec, output=spec)
    assert len(_labels(both, replace(both, output=None))) == 1
