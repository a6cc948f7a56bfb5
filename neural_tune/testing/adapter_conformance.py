"""The `Adapter` protocol, sentence by sentence, as tests to inherit."""
# ruff: noqa: S101, D102 - these are pytest tests; their names are the sentences

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune import plugins
from neural_tune.errors import AdapterError, DataError
from neural_tune.plugins import AdapterPlugin
from neural_tune.protocols import AdapterOptions, AnyAdapter, GuardsArtifact, Inputs, Outputs
from neural_tune.space import TuningSpace
from neural_tune.testing.registered import installed
from neural_tune.values import FLOAT, FLOAT_CANDIDATE, Candidate, Capability, Mode, Role


class AdapterConformance:
    """Subclass it in a test module, name the subclass Test..., and override the fixtures below.

    `model` and `calibration` must be overridden, and `adapter` where `registered` is not set; `inputs` and `options` have defaults. The model
    should be small (the kit builds it once per op and choice) and hold at least two quantizable ops.

    Attributes:
        registered: Name of the adapter in the entry-point group "neural_tune.adapters"; "" where it is not registered.
        restore_tolerance: How near a restored artifact must come to the model that was saved; equal by default.
        float_tolerance: How near the float candidate must come to the reference outputs of `float_outputs`.
    """

    registered = ""
    restore_tolerance = 0.0
    float_tolerance = 1e-5

    @pytest.fixture
    def plugin(self) -> AdapterPlugin | None:
        """The description the adapter is registered with; None skips its tests, a missing framework every test."""
        return installed(plugins.adapters(), self.registered) if self.registered else None

    @pytest.fixture
    def adapter(self, plugin: AdapterPlugin | None) -> AnyAdapter:
        """The adapter under test."""
        if plugin is None:
            raise NotImplementedError("set `registered`, or override the fixture `adapter`")
        return plugin.load()

    @pytest.fixture
    def model(self) -> object:
        """A float model as a user hands it over: an object or a path."""
        raise NotImplementedError("override the fixture `model`")

    @pytest.fixture
    def calibration(self) -> Sequence[Inputs]:
        """A few calibration batches, finite, each a mapping by input name or a single array."""
        raise NotImplementedError("override the fixture `calibration`")

    @pytest.fixture
    def inputs(self, calibration: Sequence[Inputs]) -> Inputs:
        """One batch to run."""
        return calibration[0]

    @pytest.fixture
    def options(self) -> AdapterOptions:
        """Options to load with."""
        return AdapterOptions()

    @pytest.fixture
    def float_outputs(self) -> Outputs | None:
        """What the framework itself computes for `inputs` in float; None skips the comparison."""
        return None

    @pytest.fixture
    def hold(self, adapter: AnyAdapter, model: object, options: AdapterOptions) -> Any:
        return adapter.load(model, options)

    @pytest.fixture
    def capability(self, adapter: AnyAdapter, hold: Any) -> Capability:
        return adapter.query(hold)

    @pytest.fixture
    def space(self, capability: Capability) -> TuningSpace:
        return TuningSpace.of(capability)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The only directory the adapter is given to write below."""
        return tmp_path / "given" / "statistics"

    @pytest.fixture
    def statistics(self, adapter: AnyAdapter, hold: Any, calibration: Sequence[Inputs], folder: Path) -> Any:
        return adapter.calibrate(hold, iter(calibration), folder)

    # Loading

    def test_accepts_its_model_and_nothing_else(self, adapter: AnyAdapter, model: object) -> None:
        assert adapter.accepts(model) is True
        assert not any(adapter.accepts(other) for other in (None, 3, object(), {}, "no-such-model", Path("x.unknown")))

    def test_plugin_agrees_with_the_adapter(
        self, adapter: AnyAdapter, plugin: AdapterPlugin | None, model: object
    ) -> None:
        if plugin is None:
            pytest.skip("no plugin fixture")
        assert plugin.name == adapter.name
        assert plugin.missing == ()
        assert plugin.accepts(model) is True
        assert plugin.accepts(object()) is False
        assert plugin.load().name == adapter.name

    def test_fingerprint_is_stable_over_loads(
        self, adapter: AnyAdapter, model: object, options: AdapterOptions, hold: Any
    ) -> None:
        assert adapter.fingerprint(hold)
        assert adapter.fingerprint(adapter.load(model, options)) == adapter.fingerprint(hold)

    def test_callers_model_is_never_changed(
        self,
        adapter: AnyAdapter,
        model: object,
        options: AdapterOptions,
        calibration: Sequence[Inputs],
        inputs: Inputs,
        tmp_path: Path,
    ) -> None:
        before = _content(model)
        hold = adapter.load(model, options)
        fingerprint = adapter.fingerprint(hold)
        space = TuningSpace.of(adapter.query(hold))
        statistics = adapter.calibrate(hold, calibration, tmp_path / "statistics")
        built = adapter.build(hold, space.preferred(), statistics, 1)
        adapter.run(built, inputs)
        adapter.save(built, tmp_path / "model")
        assert _content(model) == before
        assert adapter.fingerprint(hold) == fingerprint
        assert adapter.fingerprint(adapter.load(model, options)) == fingerprint

    # Capability

    def test_capability_names_the_adapter_and_unique_ops_that_end_in_float(
        self, adapter: AnyAdapter, capability: Capability
    ) -> None:
        assert capability.framework == adapter.name
        assert capability.runtime_version
        names = [op.name for op in capability.ops]
        assert names
        assert len(set(names)) == len(names)
        for op in capability.ops:
            assert op.choices[-1] == FLOAT
            assert not any(config.is_float for config in (*op.choices[:-1], *op.extra))

    def test_ops_without_a_choice_say_why(self, capability: Capability) -> None:
        silent = [op.name for op in capability.ops if not op.is_quantizable and not op.why]
        assert silent == []
        assert not any(op.is_quantizable for op in capability.ops if op.role is Role.NEVER)

    def test_groups_offer_a_choice_in_common(self, space: TuningSpace) -> None:
        assert len(space.groups) >= 2, "give the kit a model with two quantizable ops or more"
        assert all(len(group.choices) >= 2 for group in space.groups)

    def test_query_is_repeatable(self, adapter: AnyAdapter, hold: Any, capability: Capability) -> None:
        assert adapter.query(hold) == capability

    # Calibration

    def test_calibration_reads_the_data_once_and_streams(
        self, adapter: AnyAdapter, hold: Any, calibration: Sequence[Inputs], folder: Path
    ) -> None:
        stream = _Stream(calibration)
        adapter.calibrate(hold, stream, folder)
        assert stream.passes == 1
        assert stream.pulled == len(calibration)
        assert stream.most_alive <= 3, "batches were collected instead of streamed"

    def test_statistics_come_back_from_disk(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, folder: Path, inputs: Inputs
    ) -> None:
        again = adapter.load_statistics(hold, folder)
        assert again is not None
        candidate = space.preferred()
        _assert_equal(
            adapter.run(adapter.build(hold, candidate, again, 1), inputs),
            adapter.run(adapter.build(hold, candidate, statistics, 1), inputs),
        )

    def test_statistics_that_are_missing_or_torn_are_none(
        self, adapter: AnyAdapter, hold: Any, statistics: Any, folder: Path, tmp_path: Path
    ) -> None:
        assert statistics is not None
        assert adapter.load_statistics(hold, tmp_path / "elsewhere") is None
        largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        assert adapter.load_statistics(hold, folder) is None

    def test_no_calibration_data_is_a_data_error(self, adapter: AnyAdapter, hold: Any, folder: Path) -> None:
        with pytest.raises(DataError):
            adapter.calibrate(hold, iter(()), folder)

    def test_calibration_data_that_is_not_finite_is_a_data_error(
        self, adapter: AnyAdapter, hold: Any, calibration: Sequence[Inputs], folder: Path
    ) -> None:
        for bad in (np.nan, np.inf):
            spoiled = _spoil(calibration[-1], bad)
            if spoiled is None:
                pytest.skip("the model has no float input")
            with pytest.raises(DataError):
                adapter.calibrate(hold, [*calibration[:-1], spoiled], folder)

    def test_calibration_data_of_unknown_names_or_shapes_is_a_data_error(
        self, adapter: AnyAdapter, hold: Any, calibration: Sequence[Inputs], folder: Path
    ) -> None:
        array = _arrays(calibration[0])[0]
        with pytest.raises(DataError):
            adapter.calibrate(hold, [{"no such input": array}], folder)
        with pytest.raises(DataError):
            adapter.calibrate(hold, [np.zeros((2,) * (array.ndim + 2), dtype=array.dtype)], folder)

    def test_failed_calibration_leaves_no_statistics(
        self, adapter: AnyAdapter, hold: Any, calibration: Sequence[Inputs], folder: Path
    ) -> None:
        with pytest.raises(DataError):
            adapter.calibrate(hold, [calibration[0], {"no such input": _arrays(calibration[0])[0]}], folder)
        assert adapter.load_statistics(hold, folder) is None

    # Building and running

    def test_float_candidate_is_the_float_model(
        self, adapter: AnyAdapter, hold: Any, statistics: Any, inputs: Inputs, float_outputs: Outputs | None
    ) -> None:
        outputs = adapter.run(adapter.build(hold, FLOAT_CANDIDATE, None, 1), inputs)
        _assert_equal(adapter.run(adapter.build(hold, FLOAT_CANDIDATE, statistics, 1), inputs), outputs)
        assert all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f")
        if float_outputs is not None:
            _assert_equal(outputs, float_outputs, self.float_tolerance)

    def test_static_candidate_without_statistics_is_an_adapter_error(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace
    ) -> None:
        candidate = space.preferred()
        if not any(config.mode is Mode.STATIC for config in candidate.ops.values()):
            pytest.skip("the preferred precision is not static")
        with pytest.raises(AdapterError):
            adapter.build(hold, candidate, None, 1)

    def test_every_choice_of_every_group_builds_and_runs_or_raises_adapter_error(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, inputs: Inputs
    ) -> None:
        reference = adapter.run(adapter.build(hold, FLOAT_CANDIDATE, None, 1), inputs)
        ran = 0
        for group in space.groups:
            for config in group.choices[:-1]:
                try:
                    outputs = adapter.run(
                        adapter.build(hold, space.candidate({group.name: config}), statistics, 1), inputs
                    )
                except AdapterError:
                    continue
                ran += 1
                assert [output.shape for output in outputs] == [output.shape for output in reference]
                assert all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f")
        assert ran > 0, "not a single choice could be built"

    def test_quantization_changes_the_outputs(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, inputs: Inputs
    ) -> None:
        quantized = adapter.run(adapter.build(hold, space.preferred(), statistics, 1), inputs)
        original = adapter.run(adapter.build(hold, FLOAT_CANDIDATE, None, 1), inputs)
        assert any(not np.array_equal(one, other) for one, other in zip(quantized, original, strict=True))

    def test_builds_do_not_depend_on_their_order(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, inputs: Inputs
    ) -> None:
        one = space.preferred()
        other = space.with_choice(one, space.groups[0], FLOAT)
        first = adapter.build(hold, one, statistics, 1)
        expected = adapter.run(first, inputs)
        adapter.run(adapter.build(hold, other, statistics, 1), inputs)
        _assert_equal(adapter.run(adapter.build(hold, one, statistics, 1), inputs), expected)
        _assert_equal(adapter.run(first, inputs), expected)

    def test_inputs_are_taken_by_name_and_in_a_sequence(
        self, adapter: AnyAdapter, hold: Any, capability: Capability, inputs: Inputs
    ) -> None:
        built = adapter.build(hold, FLOAT_CANDIDATE, None, 1)
        arrays = _arrays(inputs)
        assert len(capability.inputs) == len(arrays)
        expected = adapter.run(built, inputs)
        _assert_equal(adapter.run(built, dict(zip(capability.inputs, arrays, strict=True))), expected)
        _assert_equal(adapter.run(built, tuple(arrays)), expected)

    def test_native_model_is_callable_or_a_session(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any
    ) -> None:
        native = adapter.native(adapter.build(hold, space.preferred(), statistics, 1))
        assert callable(native) or callable(getattr(native, "run", None))

    # Reports

    def test_report_covers_every_op_and_float_ops_have_a_reason(
        self, adapter: AnyAdapter, hold: Any, capability: Capability, space: TuningSpace, statistics: Any
    ) -> None:
        for candidate in _samples(space):
            report = adapter.report(adapter.build(hold, candidate, statistics, 1))
            assert [outcome.name for outcome in report.ops] == [op.name for op in capability.ops]
            assert [outcome.name for outcome in report.ops if outcome.is_float and not outcome.reason] == []
            quantized = {outcome.name for outcome in report.ops if not outcome.is_float}
            unexplained = {outcome.name for outcome in report.ops if not outcome.reason} - quantized
            assert not unexplained
            asked = {name for name in candidate.ops if name not in quantized}
            refused = {outcome.name for outcome in report.ops if outcome.reason}
            assert asked <= refused, "an op that was asked for in low precision is float without a word"

    def test_float_candidate_reports_no_low_precision(
        self, adapter: AnyAdapter, hold: Any, capability: Capability
    ) -> None:
        report = adapter.report(adapter.build(hold, FLOAT_CANDIDATE, None, 1))
        assert [outcome.name for outcome in report.ops] == [op.name for op in capability.ops]
        assert all(outcome.is_float for outcome in report.ops)

    # Saving

    def test_size_is_that_of_the_saved_artifact(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, tmp_path: Path
    ) -> None:
        for number, candidate in enumerate((FLOAT_CANDIDATE, *_samples(space))):
            built = adapter.build(hold, candidate, statistics, 1)
            told = adapter.size(built)
            saved = _bytes_of(adapter.save(built, tmp_path / f"model{number}"))
            assert told == pytest.approx(saved, rel=0.02)

    def test_saved_artifact_stays_below_its_directory(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, tmp_path: Path
    ) -> None:
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        directory = tmp_path / "given" / "model"
        artifact = adapter.save(adapter.build(hold, space.preferred(), statistics, 1), directory)
        written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        assert artifact.resolve().is_relative_to(directory.resolve())
        assert written
        assert all(path.is_relative_to(directory) for path in written)

    def test_calibration_writes_below_its_directory_only(self, statistics: Any, folder: Path, tmp_path: Path) -> None:
        assert statistics is not None
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert written
        assert all(path.is_relative_to(folder) for path in written)

    def test_restored_artifact_gives_equal_outputs(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, inputs: Inputs, tmp_path: Path
    ) -> None:
        for number, candidate in enumerate((FLOAT_CANDIDATE, *_samples(space))):
            built = adapter.build(hold, candidate, statistics, 1)
            artifact = adapter.save(built, tmp_path / f"model{number}")
            moved = artifact.rename(tmp_path / f"moved{number}{artifact.suffix}")  # self-contained: the rest may go
            restored = adapter.restore(moved, 1)
            _assert_equal(adapter.run(restored, inputs), adapter.run(built, inputs), self.restore_tolerance)
            assert adapter.native(restored) is not None

    def test_broken_artifact_is_an_adapter_error(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, tmp_path: Path
    ) -> None:
        artifact = adapter.save(adapter.build(hold, space.preferred(), statistics, 1), tmp_path / "model")
        files = [artifact] if artifact.is_file() else [path for path in artifact.rglob("*") if path.is_file()]
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(AdapterError):
            adapter.restore(artifact, 1)

    def test_guard_finds_nothing_in_a_sound_artifact(
        self, adapter: AnyAdapter, hold: Any, space: TuningSpace, statistics: Any, inputs: Inputs, tmp_path: Path
    ) -> None:
        if not isinstance(adapter, GuardsArtifact):
            pytest.skip("the adapter has no guard")
        artifact = adapter.save(adapter.build(hold, space.preferred(), statistics, 1), tmp_path / "model")
        assert adapter.guard(artifact, inputs) == ()


class _Stream(Iterable[Inputs]):
    """Batches that can be read once; it counts how many a reader keeps alive."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._batches = batches
        self._alive = 0
        self.passes = 0
        self.pulled = 0
        self.most_alive = 0

    def __iter__(self) -> Iterator[Inputs]:
        self.passes += 1
        for batch in self._batches:
            self.pulled += 1
            yield self._watched(batch)

    def _watched(self, batch: Inputs) -> Inputs:
        if isinstance(batch, Mapping):
            arrays = {name: np.array(array).view(_Watched) for name, array in batch.items()}
            first: Any = next(iter(arrays.values()))
            watched: Inputs = arrays
        else:
            first = np.array(_arrays(batch)[0]).view(_Watched)
            watched = first if not isinstance(batch, tuple | list) else (first, *_arrays(batch)[1:])
        first.owner = self
        self._alive += 1
        self.most_alive = max(self.most_alive, self._alive)
        return watched

    def released(self) -> None:
        """Note that one batch is gone."""
        self._alive -= 1


class _Watched(np.ndarray[Any, Any]):
    """An array that tells its stream when it is gone; views of it stay silent."""

    owner: _Stream | None = None

    def __array_finalize__(self, base: Any) -> None:
        self.owner = None

    def __del__(self) -> None:
        if self.owner is not None:
            self.owner.released()


def _samples(space: TuningSpace) -> list[Candidate]:
    """Return full int8, the first group alone, and all but the last group."""
    full = space.preferred()
    first = space.candidate({space.groups[0].name: space.groups[0].choices[0]})
    return [full, first, space.with_choice(full, space.groups[-1], FLOAT)]


def _arrays(inputs: Inputs) -> list[Any]:
    if isinstance(inputs, Mapping):
        return [np.asarray(array) for array in inputs.values()]
    if isinstance(inputs, tuple | list):
        return [np.asarray(array) for array in inputs]
    return [np.asarray(inputs)]


def _spoil(inputs: Inputs, value: float) -> Inputs | None:
    """Return a copy of `inputs` with one bad element in the first float array; None without a float array."""
    spoiled = copy.deepcopy(inputs)
    if isinstance(spoiled, Mapping):
        arrays = list(spoiled.values())
    else:
        arrays = list(spoiled) if isinstance(spoiled, tuple | list) else [spoiled]
    for array in arrays:
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            array[(0,) * array.ndim] = value
            return spoiled
    return None


def _content(model: object) -> object:
    """Return something that changes when the caller's model does: bytes of a path, arrays of an object, its state dict."""
    if isinstance(model, str | Path):
        path = Path(model)
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        return [(str(file), file.read_bytes()) for file in files]
    serialize = getattr(model, "SerializeToString", None)
    if callable(serialize):
        return serialize()
    state = getattr(model, "state_dict", None) or getattr(model, "get_weights", None)
    if callable(state):
        return _frozen(state())
    names = getattr(model, "__slots__", None) or vars(model)
    return {name: _frozen(getattr(model, name)) for name in names}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _frozen(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_frozen(item) for item in value]
    if hasattr(value, "shape"):
        array = np.asarray(value)
        return (array.shape, array.dtype.str, array.tobytes())
    return repr(value)


def _bytes_of(artifact: Path) -> int:
    files = [artifact] if artifact.is_file() else [path for path in artifact.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _assert_equal(found: Outputs, expected: Outputs, tolerance: float = 0.0) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
