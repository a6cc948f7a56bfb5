"""The contracts between the engine and everything that plugs into it.

The engine talks to a framework only through `Adapter`, to a search only through `Strategy`, and asks for the optional
abilities (`ProbesSensitivity`, `ProfilesLatency`, `Trains`, `ShowsRanges`, `GuardsArtifact`) with isinstance; it works without them.
Three opaque things belong to the adapter: `ModelT`, its hold on the caller's float model; `StatsT`, what calibration left
behind; `BuiltT`, a model that runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from neural_tune.numerics.observers import Observed
from neural_tune.space import TuningSpace
from neural_tune.values import (
    Candidate,
    Capability,
    FrozenMap,
    History,
    LatencyProfile,
    ProbeRequest,
    Proposal,
    Trial,
    TrialResult,
)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
# What one batch of model inputs can be: one array (or framework tensor), a sequence in the order of the model's inputs,
# or a mapping by input name. Adapters accept all three and convert tensors of other frameworks through numpy.
Inputs: TypeAlias = object
Outputs: TypeAlias = tuple[Array, ...]

# More bins than this cannot be told apart on a page.
_BINS_ON_A_PAGE = 160

ModelT = TypeVar("ModelT")
StatsT = TypeVar("StatsT")
BuiltT = TypeVar("BuiltT")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpOutcome:
    """What really became of one op in a built model.

    Attributes:
        name: Op name, as in the capability.
        type: Op type.
        precision: "float", or a short form of the config that was applied, such as "static: uint8 asym per_tensor".
        reason: Why it is float, or why it differs from what the candidate asked for; empty otherwise.
    """

    name: str
    type: str
    precision: str
    reason: str = ""

    @property
    def is_float(self) -> bool:
        """True when the op runs in float."""
        return self.precision == "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What an adapter says about a built model.

    Attributes:
        ops: One outcome per op of the capability, in its order.
        counts: Named counts, such as "unfused_qdq".
        notes: Findings a person should see.
    """

    ops: tuple[OpOutcome, ...]
    counts: FrozenMap[float] = field(default_factory=FrozenMap)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOptions:
    """What a configuration says to an adapter when it loads a model.

    Attributes:
        approach: "static", "dynamic", "weight_only", "auto" or "qat".
        backend: Backend of the framework; "default" lets the adapter choose.
        quant_format: Format of the quantized graph; "default" lets the adapter choose.
        device: "cpu" (others where the adapter says so).
        inputs: Names of the inputs to use; empty takes all.
        outputs: Names of the outputs to use; empty takes all.
        reduce_range: One bit less for activations or weights; None lets the adapter decide from the processor.
        recipes: Recipe name -> on or off, as the user set it.
        extra: Adapter-specific options by name.
        example: The first batch of the calibration (or evaluation) data as the loader gave it, labels included, for frameworks that can
            only capture a model by calling it; None where no data is at hand.
        has_data: Whether calibration data is given; None where that is not known yet.
    """

    approach: str = "static"
    backend: str = "default"
    quant_format: str = "default"
    device: str = "cpu"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    reduce_range: bool | None = None
    recipes: FrozenMap[Any] = field(default_factory=FrozenMap)
    extra: FrozenMap[Any] = field(default_factory=FrozenMap)
    example: Any = field(default=None, compare=False, repr=False)
    has_data: bool | None = None


class Adapter(Protocol[ModelT, StatsT, BuiltT]):
    """One framework, as the engine sees it. Stateless: everything is in the values it hands out.

    Every method raises `AdapterError` when the framework refuses or breaks, `CapabilityError` when something asked for does not
    exist here. No method changes the caller's model; every build starts from the untouched float model.
    """

    name: str

    def accepts(self, model: object) -> bool:
        """Return whether this adapter can load `model` (an object or a path). Cheap; imports no framework if it can."""

    def load(self, model: object, options: AdapterOptions) -> ModelT:
        """Return the adapter's own hold on the float model, normalised; the caller's object stays as it is."""

    def fingerprint(self, model: ModelT) -> str:
        """Return a content hash of the float model (weights and graph), stable over processes."""

    def query(self, model: ModelT) -> Capability:
        """Return what can be quantized in `model` on the installed runtime."""

    def calibrate(self, model: ModelT, batches: Iterable[Inputs], directory: Path) -> StatsT:
        """Read `batches` once, streaming, and return statistics from which any candidate can be built.

        The statistics are also written below `directory`, so that `load_statistics` can bring them back.

        Raises:
            DataError: no batch, or inputs of the wrong names, shapes or types, or values that are not finite.
        """

    def load_statistics(self, model: ModelT, directory: Path) -> StatsT | None:
        """Return what `calibrate` wrote below `directory` for this model; None if it is not there or incomplete."""

    def build(self, model: ModelT, candidate: Candidate, statistics: StatsT | None, threads: int | None) -> BuiltT:
        """Return a runnable model for `candidate`.

        Args:
            model: The float model.
            candidate: `FLOAT_CANDIDATE` gives the float model itself.
            statistics: From `calibrate`; None is enough for candidates without a static op.
            threads: Threads of the runtime; None takes the runtime's default.
        """

    def run(self, built: BuiltT, inputs: Inputs) -> Outputs:
        """Return the model's outputs for one batch, as float (or integer) numpy arrays with the batch axis first."""

    def native(self, built: BuiltT) -> object:
        """Return what the framework's users call a model: it is handed to `eval_func` and to the caller."""

    def report(self, built: BuiltT) -> BuildReport:
        """Return what became of every op."""

    def size(self, built: BuiltT) -> int:
        """Return the bytes that `save` takes on disk (within 2 %), without saving."""

    def save(self, built: BuiltT, directory: Path) -> Path:
        """Write a self-contained native artifact below `directory` and return its path (a file or a folder)."""

    def restore(self, artifact: Path, threads: int | None = None) -> BuiltT:
        """Load what `save` wrote, in a form that `run` and `native` take; needs no float model."""


AnyAdapter: TypeAlias = Adapter[Any, Any, Any]


@runtime_checkable
class CapturesByExample(Protocol):
    """An adapter that can only capture a model by calling it: it is given `AdapterOptions.example`."""

    needs_example: bool


@runtime_checkable
class NamesInputs(Protocol):
    """An adapter that can tell the names of a model's inputs, though nothing else of them, before it is loaded. `init` and `inspect` name them in messages."""

    def input_names(self, model: object) -> tuple[str, ...]:
        """Return the names by which inputs may be given, those that must be given first; () where nobody can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name, as in `Capability.inputs`.
        dtype: Name of a numpy dtype.
        shape: Lengths with the batch axis first; None where a length is free.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@runtime_checkable
class DescribesInputs(Protocol):
    """An adapter that knows names, types and shapes of a model's inputs before it sees data. `init` and `bench` make inputs from them."""

    def describe_inputs(self, model: Any) -> tuple[InputSpec, ...]:
        """Return the inputs of a loaded model, in order."""


@runtime_checkable
class CountsKernels(Protocol):
    """An adapter whose runtime compiles a model when it first runs, so that only then it is known what became of the int8 ops."""

    def kernel_counts(self, artifact: Path, threads: int | None) -> Mapping[str, float]:
        """Return named counts for an artifact that has run in this process; they join `BuildReport.counts`."""


@runtime_checkable
class GuardsArtifact(Protocol):
    """An adapter that can look for disagreement inside the runtime before a model is accepted for good."""

    def guard(self, artifact: Path, inputs: Inputs) -> tuple[str, ...]:
        """Return findings a person must see (outputs that depend on the optimization level, unfused Q/DQ ...); () if none."""


class Toggles(Protocol):
    """One ready model in which the quantization of every op of a candidate can be switched, without a rebuild."""

    def run(self, int8_ops: frozenset[str], inputs: Inputs) -> Outputs:
        """Return the outputs when exactly `int8_ops` (a subset of the candidate's ops) are quantized, the others float."""


@runtime_checkable
class ProbesSensitivity(Protocol):
    """An adapter that can toggle the quantization of single ops in one ready model."""

    def toggles(self, model: Any, candidate: Candidate, statistics: Any, threads: int | None) -> Toggles:
        """Return the toggle model of `candidate`. With no op switched on it equals the float model (with the candidate's recipes)."""


@runtime_checkable
class Simulates(Protocol):
    """An adapter whose models take long to become fast (they are compiled), and that can show their numbers without that."""

    def simulate(self, model: Any, candidate: Candidate, statistics: Any, threads: int | None) -> Any:
        """Return `candidate` as `build` does, with the same numbers up to rounding, but ready at once and slow: for probes only."""


@runtime_checkable
class ProfilesLatency(Protocol):
    """An adapter that can attribute run time to ops."""

    def profile(
        self, model: Any, candidate: Candidate, statistics: Any, inputs: Inputs, threads: int
    ) -> LatencyProfile:
        """Return the times per op of the float model and of `candidate` (full int8), attributed to the ops of the capability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedTensor:
    """What calibration saw of an activation tensor, and what became of it in a candidate; for the report.

    Attributes:
        tensor: Its name.
        ops: Ops of the capability that read it in integers.
        observer: How its range was found.
        low: Smallest real value that has a code of its own; what lies below is clipped.
        high: Largest such value.
        minimum: Smallest value seen.
        maximum: Largest value seen.
        start: Lower edge of the first bin of the histogram.
        width: Width of a bin.
        counts: Values per bin, all zeros included; some hundred bins at most.
    """

    tensor: str
    ops: tuple[str, ...]
    observer: str
    low: float
    high: float
    minimum: float
    maximum: float
    start: float
    width: float
    counts: tuple[int, ...]

    @classmethod
    def of(
        cls, tensor: str, observed: Observed, *, ops: tuple[str, ...], observer: str, low: float, high: float
    ) -> ObservedTensor:
        """Return what `observed` shows of `tensor`, its histogram made coarse enough for a page."""
        histogram = observed.histogram.at_most(_BINS_ON_A_PAGE)
        return cls(
            tensor=tensor,
            ops=ops,
            observer=observer,
            low=low,
            high=high,
            minimum=observed.minimum,
            maximum=observed.maximum,
            start=histogram.start * histogram.width,
            width=histogram.width,
            counts=tuple(int(count) for count in histogram.counts),
        )


@runtime_checkable
class TabulatesFormats(Protocol):
    """An adapter that can say, per op type of a model, what each of its formats makes of it."""

    def matrix(self, model: Any) -> tuple[tuple[str, ...], ...]:
        """Return a table for a person, the header first: which kernel each op type gets in each format, or why it stays float."""


@runtime_checkable
class ShowsRanges(Protocol):
    """An adapter that can show what its calibration saw."""

    def ranges(self, model: Any, candidate: Candidate, statistics: Any) -> tuple[ObservedTensor, ...]:
        """Return every activation tensor that `candidate` quantizes with a range from `statistics`."""


@runtime_checkable
class Differentiates(Protocol):
    """An adapter that can differentiate the model, for strategies that rank by curvature (HAWQ).

    The loss is the mean squared distance of the outputs from the float model's own, each output over its variance: it needs no labels, it is what the
    divergence of a candidate measures, and at the float weights its Hessian is the Gauss-Newton matrix.
    """

    def hessian_traces(self, model: Any, batches: Sequence[Inputs], seed: int) -> FrozenMap[float]:
        """Return op -> trace of the Hessian of the loss by the op's weights, over the number of these weights; ops with weights only.

        Hutchinson's estimate (the mean of v^T H v over random signs v) will do; equal seeds give equal traces.
        """

    def weight_errors(self, model: Any, candidate: Candidate) -> FrozenMap[float]:
        """Return op -> squared L2 distance between the float weights and those that `candidate` uses; ops with weights that it quantizes."""


class Training(Protocol):
    """A trainable copy of the float model with fake_quant wherever a candidate quantizes; used once, then finished."""

    model: Any
    """What the user's `train_func` gets: a `torch.nn.Module` in train mode, a Keras model ..."""

    def finish(self, threads: int | None) -> Any:
        """Return the trained model in integers (a BuiltT of the adapter): it can be run, saved and restored like one that `build` made.

        Raises:
            AdapterError: training left something that cannot be quantized (a NaN weight, a range that never saw a value).
        """


@runtime_checkable
class Trains(Protocol):
    """An adapter that can train a candidate (quantization-aware training)."""

    def training(self, model: Any, candidate: Candidate, statistics: Any | None) -> Training:
        """Return a trainable copy of the model with fake_quant where `candidate` quantizes; `model` stays as it is.

        Args:
            model: The float model.
            candidate: Which ops to train in integers, and how.
            statistics: From `calibrate`: the ranges training starts from. None lets training find them.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How many trials a strategy may take on a space: the usual number and the worst case."""

    expected: int
    worst: int


class Strategy(Protocol):
    """A search, as ask/tell. It sees values only: no model, adapter, clock or logger.

    A strategy is a pure function of (seed, space, history): the same history always gives the same proposal, which is what makes a
    run resumable. It never proposes the float model, never a candidate of `history.seen`, and only candidates of `space`.

    Attributes:
        name: The name under which it is registered.
        needs_exact_metrics: True when proposals depend on metric *values*; trials are then never cut short.
        wants: Probes to run before the search, some of `neural_tune.values.PROBES`; their findings come as `history.insight`, in which what
            the adapter cannot do stays empty. `insight` may be None all the same: then there is nobody to ask.
    """

    name: str
    needs_exact_metrics: bool
    wants: frozenset[str]

    def propose(self, space: TuningSpace, history: History) -> Proposal | ProbeRequest | None:
        """Return the next candidate with the reason for it; None when the search is over (or must wait for pending trials).

        Where a probe is needed to go on, and `history.insight` is there but has no answer to it, return a `ProbeRequest`; the next call
        comes with the answer. Probes that a search may do without are better asked for here than in `wants`.
        """

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether the accepted model is good enough to stop at once, when no time budget says to go on."""

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return how many trials this may take, before it starts."""


class Executor(Protocol):
    """Runs trials, one or several at a time. The driver alone writes the journal."""

    capacity: int

    def submit(self, trial: Trial) -> None:
        """Start `trial`; call it only while fewer than `capacity` are running."""

    def collect(self) -> TrialResult:
        """Wait for the next trial to end and return its result. Raises what the trial raised, unless it was an AdapterError."""

    def close(self) -> None:
        """Stop everything that is still running. Called once, also after an interrupt."""


class Reporter(Protocol):
    """Receives the events of a run (`neural_tune.events`). It must not raise and must not change anything."""

    def on_event(self, event: object) -> None:
        """Take note of `event`."""
