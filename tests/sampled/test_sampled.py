"""The strategies behind Optuna's samplers: what they are told, and that they find what they should."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from neural_tune import plugins
from neural_tune.errors import ConfigError
from neural_tune.testing import begin, drive
from neural_tune.testing.spaces import choices, op, space_of
from neural_tune.values import (
    FLOAT,
    AccuracyCriterion,
    Baseline,
    Candidate,
    FrozenMap,
    Objective,
    Objectives,
    Observer,
    Origin,
    Trial,
    TrialResult,
    TrialStatus,
)
from neural_tune_strategies.auto.costs import count_costs
from neural_tune_strategies.studies import Choices, told

pytest.importorskip("optuna", reason="the extra `search` is not installed")

ABSOLUTE = AccuracyCriterion(criterion="absolute", tolerable_loss=0.1)
SPACE = space_of(*(op(f"c{number}", "Conv", choices(Observer.KL)) for number in range(8)))
NAMES = [
    "tpe",
    "pareto",
    pytest.param(
        "bayesian",
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(name) is None for name in ("torch", "scipy")), reason="the extra `bayesian` is not installed"
        ),
    ),
]  # fmt: skip


def candidates(history):
    return [result.trial.candidate for result in history.results]


def two_bad(candidate):
    """c2 and c5 must be float; the rest costs a little."""
    return 1.0 - 0.3 * ("c2" in candidate.ops) - 0.3 * ("c5" in candidate.ops) - 0.005 * len(candidate.ops)


def test_candidates_become_parameters_and_back():
    some = SPACE.candidate({"c0": SPACE.groups[0].choices[1], "c7": SPACE.groups[7].choices[0]})
    places = Choices(SPACE).places(some)
    assert places == {"c0": 1, "c1": 2, "c2": 2, "c3": 2, "c4": 2, "c5": 2, "c6": 2, "c7": 0}
    assert Choices(SPACE).candidate(places) == some
    assert Choices(SPACE).places(Candidate.of({"stranger": SPACE.groups[0].choices[0]})) is None


def test_the_sampler_is_told_cost_and_violation_of_every_trial():
    history = drive(
        plugins.strategy("random", 1), SPACE, two_bad, begin(1.0, ABSOLUTE), max_trials=4, until_content=False
    )
    trial = Trial(number=9, candidate=SPACE.preferred(), origin=Origin("x"))
    failed = TrialResult(trial=trial, status=TrialStatus.FAILED, error="AdapterError: scripted")
    history = history.with_result(failed)
    found = told(Choices(SPACE), history, count_costs(SPACE))
    for item, result in zip(found[:4], history.results[:4], strict=True):
        floats = sum(SPACE.choice_of(result.trial.candidate, group) == FLOAT for group in SPACE.groups)
        assert item.cost == floats
        assert (item.violation <= 0.0) == result.is_accepted
    assert found[4].violation == max(item.violation for item in found[:4])
    pending = history.with_pending(replace(trial, number=10))
    assert len(told(Choices(SPACE), pending, count_costs(SPACE))) == 6


@pytest.mark.parametrize("name", NAMES)
def test_the_preferred_candidate_comes_first(name):
    proposal = plugins.strategy(name, 3).propose(SPACE, begin(1.0, ABSOLUTE))
    assert proposal.candidate == SPACE.preferred()


@pytest.mark.parametrize("name", NAMES)
def test_proposals_depend_on_seed_and_history_alone(name):
    options = {"population": 5} if name == "pareto" else {"startup": 4}
    whole = drive(plugins.strategy(name, 3, **options), SPACE, two_bad, begin(1.0, ABSOLUTE), max_trials=12, until_content=False)  # fmt: skip
    for cut in (0, 3, 6, 9, 11):
        prefix = replace(whole, results=whole.results[:cut])
        again = plugins.strategy(name, 3, **options).propose(SPACE, prefix)
        assert again.candidate == whole.results[cut].trial.candidate
    other = drive(plugins.strategy(name, 4, **options), SPACE, two_bad, begin(1.0, ABSOLUTE), max_trials=12, until_content=False)  # fmt: skip
    assert candidates(other) != candidates(whole)
    assert len(set(candidates(whole))) == 12


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_an_accepted_candidate_in_fewer_trials_than_uniform_draws_usually_need(name):
    """Uniform draws need 9 trials in the mean to have both culprits in float; the models see the pattern."""
    trials = []
    for seed in range(3):
        history = drive(plugins.strategy(name, seed), SPACE, two_bad, begin(1.0, ABSOLUTE), max_trials=60, until_content=name != "pareto")  # fmt: skip
        trials.append(next(place for place, result in enumerate(history.results) if result.is_accepted))
    assert max(trials) <= 40


@pytest.mark.parametrize("name", ["tpe", NAMES[2]])
def test_the_model_lowers_the_cost_under_the_constraint(name):
    history = drive(
        plugins.strategy(name, 1), SPACE, two_bad, begin(1.0, ABSOLUTE), max_trials=45 if name == "tpe" else 28, until_content=False
    )  # fmt: skip
    floats = [8 - len(result.trial.candidate.ops) for result in history.results if result.is_accepted]
    assert min(floats) <= 3, "the optimum is 2"
    late = [8 - len(result.trial.candidate.ops) for result in history.results[-8:]]
    draws = drive(
        plugins.strategy("random", 1), SPACE, two_bad, begin(1.0, ABSOLUTE), max_trials=8, until_content=False
    )
    assert sum(late) / len(late) < sum(8 - len(c.ops) for c in candidates(draws)) / 8 + 1.0


def measured(history, trial, accuracy, objectives):
    is_accepted = accuracy >= 0.9
    return history.with_result(
        TrialResult(
            trial=trial,
            status=TrialStatus.COMPLETE,
            metrics=FrozenMap({"accuracy": accuracy}),
            objectives=FrozenMap(objectives if is_accepted else {}),
            is_accepted=is_accepted,
            passes=1.0,
        )
    )


def test_pareto_is_content_after_its_trials_and_learns_the_constraint():
    """Every int8 op saves 1 ms and costs 0.004 accuracy, KL half as much at half the gain: the ends of the front are far apart."""
    history = replace(
        begin(1.0, ABSOLUTE),
        baseline=Baseline(metrics=FrozenMap({"accuracy": 1.0}), objectives=FrozenMap({"latency": 20.0, "size": 100.0})),
        objectives=Objectives((Objective("latency"), Objective("size")), pareto=True),
    )
    strategy = plugins.strategy("pareto", 0, population=8, trials=40)
    while not strategy.is_content(SPACE, history):
        proposal = strategy.propose(SPACE, history)
        trial = Trial(number=history.next_number, candidate=proposal.candidate, origin=Origin("pareto"))
        history = history.with_pending(trial)
        fast = sum(config == SPACE.groups[0].choices[0] for config in trial.candidate.ops.values())
        slow = len(trial.candidate.ops) - fast
        accuracy = two_bad(trial.candidate) - 0.002 * fast
        history = measured(
            history, trial, accuracy, {"latency": 20.0 - fast - slow / 2, "size": 100.0 - 9 * (fast + slow)}
        )
    assert len(history.results) == 40
    late = sum(result.is_accepted for result in history.results[20:])
    early = sum(result.is_accepted for result in history.results[:20])
    assert late > early, "the constraint is learned"


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("pareto", "population", 1), ("pareto", "trials", 0), ("tpe", "startup", 0), ("tpe", "startup", True)],
)
def test_wrong_options_are_config_errors_that_name_them(name, option, value):
    with pytest.raises(ConfigError, match=f"{option}: found {value}"):
        plugins.strategy(name, 0, **{option: value})


def test_optuna_is_silent_and_its_level_stays(caplog, capfd):
    import optuna

    before = logging.getLogger("optuna").level
    drive(plugins.strategy("tpe", 0), SPACE, lambda _: 0.0, begin(1.0, ABSOLUTE), max_trials=14)
    assert logging.getLogger("optuna").level == before == logging.getLogger(optuna.__name__).level
    assert "optuna" not in {record.name.split(".")[0] for record in caplog.records}
    assert capfd.readouterr() == ("", "")


def test_optuna_is_imported_at_the_first_draw_only():
    code = (
        "import sys; from neural_tune import plugins;"
        "[plugins.strategy(name, 0) for name in ('tpe', 'pareto')];"
        "print('optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
