"""An adapter without a framework: a numpy MLP in real int8 arithmetic, for tests of everything around adapters.

Quantization really costs accuracy here, sizes and statistics are on disk, and the model can be told to break. Nothing is
simulated: a latency is that of numpy, whose integer products are slower than its float ones, so int8 models of the toy are
smaller but not faster.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune import calibration
from neural_tune.calibration import Collector, Statistics
from neural_tune.errors import AdapterError, CapabilityError, ConfigError, DataError
from neural_tune.plugins import AdapterPlugin
from neural_tune.protocols import AdapterOptions, BuildReport, Inputs, OpOutcome, Outputs
from neural_tune.testing.toy_artifact import artifact_size, read_artifact, write_artifact
from neural_tune.testing.toy_curvature import mean_traces, weight_errors
from neural_tune.testing.toy_layers import Dense, FloatDense, Grid, IntegerDense, ToyBuilt
from neural_tune.testing.toy_model import SUFFIX, Floats, ToyModel
from neural_tune.testing.toy_training import ToyTrainee, ToyTraining
from neural_tune.values import (
    FLOAT,
    Candidate,
    Capability,
    DType,
    FrozenMap,
    Granularity,
    Mode,
    Observer,
    OpCapability,
    OpConfig,
    QuantSpec,
    Role,
)

_FAULTS = ("raise", "nan", "segv")
_FOLDED = "runs as a clamp of the integer layer before it"


@dataclass(frozen=True, eq=False, slots=True)
class ToyHold:
    """The adapter's hold on a float model: a private copy, and what was asked for when it was loaded."""

    model: ToyModel
    reduce_range: bool = False
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the Dense layers' input tensors: x, hidden1, hidden2 ..."""
        return ("x", *(f"hidden{number}" for number in range(1, len(self.model.weights))))


class ToyAdapter:
    """The whole `Adapter` protocol, `GuardsArtifact`, `Differentiates` and `Trains`, for `ToyModel` objects and *.toy.npz files.

    Args:
        faults: Op name -> what goes wrong when that op is quantized: "raise" raises AdapterError at build, "nan" makes the
            outputs NaN, "segv" kills the process with SIGSEGV at run. `AdapterOptions.extra["faults"]` takes the same.
    """

    name = "toy"

    def __init__(self, faults: Mapping[str, str] | None = None) -> None:
        self.faults = dict(faults or {})

    def accepts(self, model: object) -> bool:
        """Return whether `model` is a ToyModel or a path that ends in .toy.npz."""
        return _accepts(model)

    def load(self, model: object, options: AdapterOptions) -> ToyHold:
        """Return a copy of the model. Raises CapabilityError for options that the toy does not have."""
        if options.approach not in ("static", "auto", "qat") or options.device != "cpu":
            raise CapabilityError(
                f"toy: found {options.approach} on {options.device}, expected static (or auto, qat) on cpu"
            )
        if isinstance(model, ToyModel):
            loaded = model.copy()
        elif isinstance(model, str | Path) and _accepts(model):
            loaded = ToyModel.read(Path(model))
        else:
            raise AdapterError(f"toy: found a {type(model).__name__}, expected a ToyModel or a path to *{SUFFIX}")
        faults = {**self.faults, **dict(options.extra.get("faults", {}))}
        _check_faults(faults, loaded)
        return ToyHold(loaded, bool(options.reduce_range), faults)

    def fingerprint(self, model: ToyHold) -> str:
        """Return a hash of shapes, weights and biases."""
        content = hashlib.sha256()
        for array in (*model.model.weights, *model.model.biases):
            content.update(f"{array.shape}{array.dtype.str}".encode())
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()

    def query(self, model: ToyHold) -> Capability:
        """Return Dense layers as anchors; a Relu passes on what the layer before it does."""
        ops: list[OpCapability] = []
        names = model.model.dense_names
        for place, name in enumerate(names):
            is_last = place == len(names) - 1
            output = "logits" if is_last else f"sum{place + 1}"
            ops.append(_dense(name, model, model.tensors[place], output, model.model.weights[place].size))
            if not is_last:
                ops.append(_relu(place + 1, output, model.tensors[place + 1]))
        return Capability(
            framework=self.name,
            runtime_version=np.__version__,
            instruction_set=platform.machine(),
            ops=tuple(ops),
            inputs=("x",),
        )

    def calibrate(self, model: ToyHold, batches: Iterable[Inputs], directory: Path) -> Statistics:
        """Run the float model over `batches` once and take the range of every layer's input."""
        collector = Collector()
        for inputs in batches:
            values = _floats(inputs, model.model.weights[0].shape[0])
            for name, layer in zip(model.tensors, _float_layers(model.model), strict=True):
                collector.see(name, values)
                values = np.maximum(layer.accumulate(values), 0.0)
            collector.end_batch()
        statistics = collector.statistics()
        calibration.save(statistics, directory, key=self.fingerprint(model))
        return statistics

    def load_statistics(self, model: ToyHold, directory: Path) -> Statistics | None:
        """Return the statistics below `directory` if they are this model's."""
        return calibration.load(directory, key=self.fingerprint(model))

    def build(
        self,
        model: ToyHold,
        candidate: Candidate,
        statistics: Statistics | None,
        threads: int | None = None,  # noqa: ARG002 - protocol
    ) -> ToyBuilt:
        """Return the integer model of `candidate`. `threads` is ignored: numpy's are set by the environment."""
        _check_candidate(self.query(model), model, candidate)
        if statistics is None and not candidate.is_float:
            raise AdapterError("toy: a candidate with static ops needs statistics; calibrate first")
        observers = {choice.tensor: (choice.observer, choice.percentile) for choice in candidate.ranges}
        layers: list[Dense] = []
        for layer, tensor in zip(_float_layers(model.model), model.tensors, strict=True):
            config = candidate.config_of(layer.name)
            if config.is_float or statistics is None or config.activation is None:
                layers.append(layer)
                continue
            fault = model.faults.get(layer.name, "")
            if fault == "raise":
                raise AdapterError(f"toy: {layer.name} was told to fail when it is quantized")
            spec = config.activation
            observer, percentile = observers.get(tensor, (spec.observer, spec.percentile))
            grid = Grid.of(spec, statistics, tensor, observer, percentile)
            layers.append(IntegerDense.of(layer, config, grid, fault))
        return ToyBuilt(tuple(layers))

    def training(self, model: ToyHold, candidate: Candidate, statistics: Statistics | None) -> ToyTraining:
        """Return a copy that trains itself with fake_quant; see `ToyTrainee.fit`."""
        _check_candidate(self.query(model), model, candidate)

        def finish(trained: ToyModel, seen: Statistics) -> ToyBuilt:
            return self.build(replace(model, model=trained), candidate, seen)

        return ToyTraining(ToyTrainee(model.model.copy(), model.tensors, candidate, statistics), finish)

    def hessian_traces(self, model: ToyHold, batches: Sequence[Inputs], seed: int) -> FrozenMap[float]:  # noqa: ARG002 - nothing is drawn
        """Return the mean Hessian trace of every Dense, exactly."""
        features = model.model.weights[0].shape[0]
        return mean_traces(model.model, [_floats(inputs, features) for inputs in batches])

    def weight_errors(self, model: ToyHold, candidate: Candidate) -> FrozenMap[float]:
        """Return the squared weight error of every Dense that `candidate` quantizes."""
        return weight_errors(_float_layers(model.model), candidate)

    def run(self, built: ToyBuilt, inputs: Inputs) -> Outputs:
        """Return the logits of one batch, float32 of shape (samples, classes)."""
        return (built(_floats(inputs, built.features)),)

    def native(self, built: ToyBuilt) -> ToyBuilt:
        """Return the built model, a callable from inputs to logits."""
        return built

    def report(self, built: ToyBuilt) -> BuildReport:
        """Return the precision of every Dense, and of the Relu behind it."""
        outcomes: list[OpOutcome] = []
        for place, layer in enumerate(built.layers, start=1):
            reason = "the candidate keeps it in float" if layer.config.is_float else ""
            outcomes.append(OpOutcome(name=layer.name, type="Dense", precision=layer.config.describe(), reason=reason))
            if place < len(built.layers):
                outcomes.append(_relu_outcome(place, layer, built.layers[place]))
        return BuildReport(ops=tuple(outcomes))

    def size(self, built: ToyBuilt) -> int:
        """Return the exact bytes of the saved artifact."""
        return artifact_size(built)

    def save(self, built: ToyBuilt, directory: Path) -> Path:
        """Write the folder `toy_model` below `directory`."""
        return write_artifact(built, directory)

    def restore(self, artifact: Path, threads: int | None = None) -> ToyBuilt:  # noqa: ARG002 - protocol
        """Load a saved folder."""
        return read_artifact(artifact)

    def guard(self, artifact: Path, inputs: Inputs) -> tuple[str, ...]:
        """Return findings: outputs that are not finite, or that depend on the other samples of the batch."""
        built = read_artifact(artifact)
        samples = _floats(inputs, built.features)
        together = built(samples)
        if not np.isfinite(together).all():
            return ("outputs are not finite",)
        alone = np.concatenate([built(samples[place : place + 1]) for place in range(len(samples))])
        if not np.allclose(together, alone, rtol=1e-3, atol=1e-3):
            return ("outputs depend on the batch",)
        return ()


def _accepts(model: object) -> bool:
    return isinstance(model, ToyModel) or (isinstance(model, str | Path) and str(model).endswith(SUFFIX))


TOY_PLUGIN = AdapterPlugin(
    name="toy",
    summary="a numpy MLP with real int8 arithmetic, for tests",
    requires=("numpy",),
    install="neural-tune",
    accepts=_accepts,
    load=ToyAdapter,
)


def _dense(name: str, hold: ToyHold, tensor: str, output: str, parameters: int) -> OpCapability:
    activation = QuantSpec(dtype=DType.UINT8, symmetric=False, reduce_range=hold.reduce_range)
    weight = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL, axis=1, reduce_range=hold.reduce_range)
    weights = (weight, replace(weight, granularity=Granularity.PER_TENSOR, axis=None))
    observers = (Observer.MINMAX, Observer.PERCENTILE)
    choices = [
        OpConfig(mode=Mode.STATIC, activation=replace(activation, observer=observer), weight=chosen)
        for chosen in weights
        for observer in observers
    ]
    signed = replace(activation, dtype=DType.INT8, symmetric=True)
    return OpCapability(
        name=name,
        type="Dense",
        role=Role.ANCHOR,
        choices=(*choices, FLOAT),
        extra=tuple(OpConfig(mode=Mode.STATIC, activation=signed, weight=chosen) for chosen in weights),
        inputs=(tensor,),
        outputs=(output,),
        parameters=parameters,
    )


def _relu(number: int, tensor: str, output: str) -> OpCapability:
    return OpCapability(
        name=f"relu{number}",
        type="Relu",
        role=Role.PASS_THROUGH,
        choices=(FLOAT,),
        why=_FOLDED,
        inputs=(tensor,),
        outputs=(output,),
    )


def _relu_outcome(number: int, before: Dense, after: Dense) -> OpOutcome:
    if isinstance(before, IntegerDense) and isinstance(after, IntegerDense):
        return OpOutcome(name=f"relu{number}", type="Relu", precision=before.config.describe(), reason=_FOLDED)
    beside = before if isinstance(before, FloatDense) else after
    reason = f"passes on what its neighbours do, and {beside.name} is in float"
    return OpOutcome(name=f"relu{number}", type="Relu", precision="float", reason=reason)


def _float_layers(model: ToyModel) -> list[FloatDense]:
    names = zip(model.dense_names, model.weights, model.biases, strict=True)
    return [FloatDense(name, weight, bias, FLOAT) for name, weight, bias in names]


def _check_faults(faults: Mapping[str, Any], model: ToyModel) -> None:
    for op, fault in faults.items():
        if op not in model.dense_names or fault not in _FAULTS:
            expected = f"one of {', '.join(model.dense_names)} with one of {', '.join(_FAULTS)}"
            raise ConfigError(f"toy faults: found {op!r}: {fault!r}, expected {expected}")


def _check_candidate(capability: Capability, hold: ToyHold, candidate: Candidate) -> None:
    """Refuse what the toy does not have instead of building something else."""
    offered = {op.name: (*op.choices, *op.extra) for op in capability.ops}
    for name, config in candidate.ops.items():
        if config not in offered.get(name, ()):
            raise CapabilityError(f"toy: {name!r} does not offer {config.describe()}; see the capability")
    unknown = sorted({choice.tensor for choice in candidate.ranges} - set(hold.tensors))
    if unknown or candidate.recipes:
        raise CapabilityError(
            f"toy: found tensors {unknown} and recipes {list(candidate.recipes)}, "
            f"expected tensors among {list(hold.tensors)} and no recipe"
        )
    observers = (Observer.MINMAX, Observer.PERCENTILE)
    if any(choice.observer not in observers for choice in candidate.ranges):
        raise CapabilityError("toy: a tensor's range is found by minmax or percentile only")


def _floats(inputs: Inputs, features: int) -> Floats:
    """Return one batch as float32 of shape (samples, features). Raises DataError for anything else."""
    if isinstance(inputs, Mapping):
        if set(inputs) != {"x"}:
            raise DataError(f"inputs: found the names {sorted(map(str, inputs))}, expected x")
        inputs = inputs["x"]
    elif isinstance(inputs, tuple | list) and len(inputs) == 1:
        inputs = inputs[0]
    array = np.asarray(inputs)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != features or not len(array):
        raise DataError(
            f"inputs: found {array.dtype} of shape {array.shape}, expected numbers of shape (n, {features})"
        )
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("inputs: found values that are not finite (NaN or infinity), expected finite numbers")
    return values
