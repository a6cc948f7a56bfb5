from __future__ import annotations

import pytest

from neural_tune.config import (
    PerformanceConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuneConfig,
    TuningCriterion,
    parse_objectives,
    parse_rules,
)
from neural_tune.errors import ConfigError
from neural_tune.space import Scope
from neural_tune.values import AccuracyCriterion, DType, Granularity, Objective, Observer


def test_defaults_are_those_of_the_design() -> None:
    config = PostTrainingQuantConfig().to_tune_config()
    assert config.sampling_size == 100
    assert config.criterion == AccuracyCriterion(True, "relative", 0.01)
    assert config.stop.max_trials == 100
    assert config.stop.at_first_acceptable
    assert config.objectives.names == ("latency",)


def test_incs_words_for_objectives_are_understood() -> None:
    objectives, functions = parse_objectives(
        {"objective": ["performance", "modelsize"], "weight": [0.7, 0.3], "higher_is_better": [False, False]}
    )
    assert objectives.names == ("latency", "size")
    assert [item.weight for item in objectives.items] == [0.7, 0.3]
    assert functions == {}


def test_a_callable_objective_is_kept_by_name() -> None:
    def energy(model: object) -> float:
        return 1.0

    config = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(objective=["latency", energy]))
    assert config.objective_functions == {"energy": energy}
    assert config.to_tune_config().objectives.items[1] == Objective("energy", 1.0, False)


def test_an_inc_op_type_dict_becomes_a_rule() -> None:
    (rule,) = parse_rules(
        op_type={
            "Conv|MatMul": {
                "activation": {"dtype": ["uint8"], "scheme": ["asym"], "algorithm": ["kl", "minmax"]},
                "weight": {"granularity": "per_tensor"},
            }
        }
    )
    assert rule.scope is Scope.OP_TYPE
    assert rule.restriction.activation.dtype == (DType.UINT8,)
    assert rule.restriction.activation.symmetric == (False,)
    assert rule.restriction.activation.observer == (Observer.KL, Observer.MINMAX)
    assert rule.restriction.weight.granularity == (Granularity.PER_TENSOR,)
    assert rule.restriction.keep_float is False


@pytest.mark.parametrize("wish", ["float", "fp32", {"weight": {"dtype": ["fp32"]}}, {"activation": {"dtype": "fp32"}}])
def test_a_float_dtype_keeps_the_op_in_float(wish: object) -> None:
    (rule,) = parse_rules(op_name={"conv1": wish})
    assert rule.restriction.keep_float is True


def test_all_errors_of_the_rules_come_at_once_with_their_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules(
            op_type={"Conv": {"weight": {"dtype": ["int9"]}}, "Gemm": {"wait": {}}},
            op_name={"fc(": "float", "fc": {"activation": {"color": "red"}}},
        )
    lines = str(caught.value).split("\n")
    assert len(lines) == 4
    assert "op_type_dict['Conv'].weight.dtype: found 'int9', expected one of int4" in lines[0]
    assert "op_type_dict['Gemm']: found the keys ['wait']" in lines[1]
    assert "op_name_dict['fc(']: 'fc(' is no regular expression" in lines[2]
    assert "op_name_dict['fc'].activation.color: unknown key" in lines[3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: TuneConfig(approach="statik"), "approach: found 'statik', expected one of static"),
        (lambda: TuneConfig(sampling_size=0), "calibration_sampling_size: found 0"),
        (lambda: TuneConfig(workers=2), "workers: found 2 with executor 'local'"),
        (lambda: TuneConfig(threads=0), "threads: found 0"),
        (lambda: PerformanceConfig(batch_size=0), "performance.batch_size: found 0"),
        (lambda: PerformanceConfig(seconds=0), "performance.seconds: found 0"),
        (lambda: PostTrainingQuantConfig(calibration_sampling_size=[10, 20]).to_tune_config(), "expected one integer"),
        (lambda: PostTrainingQuantConfig(exclude="conv1").to_tune_config(), "exclude: found the string 'conv1'"),
        (lambda: parse_objectives({"weight": [1]}), "objective: found the keys"),
        (lambda: parse_objectives({"objective": ["latency"], "weight": [1, 2]}), "as many of each"),
        (lambda: parse_objectives(3), "objective: found 3"),
        (lambda: parse_objectives("speed"), "objective 'speed' is none of"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=None) as caught:
        config()  # type: ignore[operator]
    assert message in str(caught.value)


def test_fields_without_effect_become_notices() -> None:
    config = PostTrainingQuantConfig(domain="nlp", quant_level=0, diagnosis=True).to_tune_config()
    assert len(config.notices) == 3
    assert all("no effect" in notice for notice in config.notices)


def test_quantization_aware_training_asks_for_training() -> None:
    assert QuantizationAwareTrainingConfig().to_tune_config().approach == "qat"
