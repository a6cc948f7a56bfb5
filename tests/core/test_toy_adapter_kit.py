"""The adapter kit fails on adapters that break one sentence of the protocol each."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, DataError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.testing import AdapterConformance, ToyAdapter, toy_task
from neural_tune.testing.toy import ToyHold
from neural_tune.values import FLOAT, FLOAT_CANDIDATE, FrozenMap

KIT = AdapterConformance()
TASK = toy_task()


class ChangesTheModel(ToyAdapter):
    def load(self, model, options):
        model.weights[0] *= 1.0001
        return super().load(model, options)


class KeepsTheCallersArrays(ToyAdapter):
    def load(self, model, options):
        return ToyHold(model)

    def build(self, model, candidate, statistics, threads=None):
        model.model.weights[0] += 1e-3
        return super().build(model, candidate, statistics, threads)


class RandomFingerprint(ToyAdapter):
    def fingerprint(self, model):
        return str(np.random.default_rng().integers(2**60))


class CollectsBatches(ToyAdapter):
    def calibrate(self, model, batches, directory):
        return super().calibrate(model, list(batches), directory)


class ReadsTwice(ToyAdapter):
    def calibrate(self, model, batches, directory):
        next(iter(batches))
        return super().calibrate(model, batches, directory)


class TakesNaN(ToyAdapter):
    def calibrate(self, model, batches, directory):
        return super().calibrate(model, (np.nan_to_num(batch, posinf=0) for batch in batches), directory)


class TakesNothing(ToyAdapter):
    def calibrate(self, model, batches, directory):
        try:
            return super().calibrate(model, batches, directory)
        except DataError:
            return None


class WritesEarly(ToyAdapter):
    def calibrate(self, model, batches, directory):
        super().calibrate(model, [TASK.calibration], directory)
        return super().calibrate(model, batches, directory)


class TrustsTornStatistics(ToyAdapter):
    def load_statistics(self, model, directory):
        found = super().load_statistics(model, directory)
        return found or (Statistics({}) if list(directory.glob("*")) else None)


class ForgetsStatistics(ToyAdapter):
    def load_statistics(self, model, directory):
        found = super().load_statistics(model, directory)
        if found is None:
            return None
        wider = {name: replace(seen, maximum=seen.maximum * 1.5) for name, seen in found.tensors.items()}
        return replace(found, tensors=wider)


class QuantizesNothing(ToyAdapter):
    def build(self, model, candidate, statistics, threads=None):
        return super().build(model, FLOAT_CANDIDATE, statistics, threads)


class StartsFromTheLastBuild(ToyAdapter):
    """As INC did: what the trial before left in float stays there."""

    last = FLOAT_CANDIDATE

    def build(self, model, candidate, statistics, threads=None):
        left = {} if self.last.is_float else {name: FLOAT for name in candidate.ops if name not in self.last.ops}
        self.last = candidate
        return super().build(model, candidate.with_ops(left), statistics, threads)


class RaisesSomethingElse(ToyAdapter):
    def build(self, model, candidate, statistics, threads=None):
        try:
            return super().build(model, candidate, statistics, threads)
        except AdapterError as error:
            raise RuntimeError from error


class SilentReport(ToyAdapter):
    def report(self, built):
        report = super().report(built)
        return replace(report, ops=tuple(replace(outcome, reason="") for outcome in report.ops))


class ShortReport(ToyAdapter):
    def report(self, built):
        report = super().report(built)
        return replace(report, ops=report.ops[:-1], counts=FrozenMap())


class WrongSize(ToyAdapter):
    def size(self, built):
        return int(super().size(built) * 1.05)


class SavesElsewhere(ToyAdapter):
    def save(self, built, directory):
        return super().save(built, directory.parent / "elsewhere")


class RestoresRoughly(ToyAdapter):
    def restore(self, artifact, threads=None):
        built = super().restore(artifact, threads)
        built.layers[-1].bias[:] += 1
        return built


class SwallowsBrokenFiles(ToyAdapter):
    def restore(self, artifact, threads=None):
        try:
            return super().restore(artifact, threads)
        except AdapterError as error:
            raise ValueError from error


class AcceptsAll(ToyAdapter):
    def accepts(self, model):
        return True


def _call(adapter, test, tmp_path):
    """Call one test of the kit with its fixtures, as pytest would."""
    model, folder = TASK.model.copy(), tmp_path / "given" / "statistics"
    known = {
        "adapter": lambda: adapter,
        "model": lambda: model,
        "options": AdapterOptions,
        "calibration": TASK.batches,
        "inputs": lambda: TASK.calibration[:32],
        "plugin": lambda: None,
        "float_outputs": lambda: (TASK.model(TASK.calibration[:32]),),
        "tmp_path": lambda: tmp_path,
        "folder": lambda: folder,
        "hold": lambda: adapter.load(model, AdapterOptions()),
        "capability": lambda: adapter.query(ToyHold(model)),
        "space": lambda: TuningSpace.of(adapter.query(ToyHold(model))),
        "statistics": lambda: adapter.calibrate(ToyHold(model), TASK.batches(), folder),
    }
    function = getattr(KIT, test)
    function(**{name: known[name]() for name in inspect.signature(function).parameters})


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (AcceptsAll, "test_accepts_its_model_and_nothing_else"),
        (ChangesTheModel, "test_callers_model_is_never_changed"),
        (KeepsTheCallersArrays, "test_callers_model_is_never_changed"),
        (RandomFingerprint, "test_fingerprint_is_stable_over_loads"),
        (CollectsBatches, "test_calibration_reads_the_data_once_and_streams"),
        (ReadsTwice, "test_calibration_reads_the_data_once_and_streams"),
        (TakesNaN, "test_calibration_data_that_is_not_finite_is_a_data_error"),
        (TakesNothing, "test_no_calibration_data_is_a_data_error"),
        (TakesNothing, "test_calibration_data_of_unknown_names_or_shapes_is_a_data_error"),
        (WritesEarly, "test_failed_calibration_leaves_no_statistics"),
        (TrustsTornStatistics, "test_statistics_that_are_missing_or_torn_are_none"),
        (ForgetsStatistics, "test_statistics_come_back_from_disk"),
        (QuantizesNothing, "test_quantization_changes_the_outputs"),
        (QuantizesNothing, "test_static_candidate_without_statistics_is_an_adapter_error"),
        (StartsFromTheLastBuild, "test_builds_do_not_depend_on_their_order"),
        (RaisesSomethingElse, "test_static_candidate_without_statistics_is_an_adapter_error"),
        (SilentReport, "test_report_covers_every_op_and_float_ops_have_a_reason"),
        (ShortReport, "test_report_covers_every_op_and_float_ops_have_a_reason"),
        (ShortReport, "test_float_candidate_reports_no_low_precision"),
        (WrongSize, "test_size_is_that_of_the_saved_artifact"),
        (SavesElsewhere, "test_saved_artifact_stays_below_its_directory"),
        (RestoresRoughly, "test_restored_artifact_gives_equal_outputs"),
        (SwallowsBrokenFiles, "test_broken_artifact_is_an_adapter_error"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_kit_fails(broken, test, tmp_path):
    with pytest.raises((AssertionError, pytest.fail.Exception, RuntimeError, ValueError)):
        _call(broken(), test, tmp_path / "broken")
    _call(ToyAdapter(), test, tmp_path / "sound")
