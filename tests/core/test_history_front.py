from __future__ import annotations

from neural_tune.values import (
    AccuracyCriterion,
    Baseline,
    Candidate,
    FrozenMap,
    History,
    Objective,
    Objectives,
    Origin,
    Trial,
    TrialResult,
    TrialStatus,
)


def _result(number: int, accuracy: float, latency: float, size: float, *, accepted: bool = True) -> TrialResult:
    return TrialResult(
        trial=Trial(number=number, candidate=Candidate(recipes=(str(number),)), origin=Origin("test")),
        status=TrialStatus.COMPLETE,
        metrics=FrozenMap({"top1": accuracy}),
        objectives=FrozenMap({"latency": latency, "size": size}),
        is_accepted=accepted,
    )


def test_the_front_holds_what_nothing_beats_in_all_of_accuracy_latency_and_size() -> None:
    history = History(
        baseline=Baseline(metrics=FrozenMap({"top1": 0.90}), objectives=FrozenMap({"latency": 10.0, "size": 100.0})),
        criterion=AccuracyCriterion(True, "absolute", 0.02),
        objectives=Objectives((Objective("latency"), Objective("size"))),
        results=(
            _result(1, 0.89, 5.0, 30.0),
            _result(2, 0.90, 6.0, 40.0),  # more accurate than 1
            _result(3, 0.89, 6.0, 40.0),  # 2 beats it in accuracy, 1 in the rest
            _result(4, 0.89, 7.0, 20.0),  # smallest
            _result(5, 0.80, 1.0, 1.0, accepted=False),
        ),
    )
    assert [result.trial.number for result in history.front] == [2, 1, 4]


def test_an_empty_history_has_an_empty_front() -> None:
    assert History(baseline=Baseline(metrics=FrozenMap({"top1": 0.9}))).front == ()
