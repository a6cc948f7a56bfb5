"""Where the time goes: the runtime's own profiles of float, full int8 and two mixed candidates, as times of the original ops and of borders.

Two mixed candidates, every second anchor in float and then the others, put a border nearly everywhere in one direction or the
other; the cost of a border that was not seen is fitted from its element count. The profiler itself costs some microseconds per node, so its times are
scaled to the unprofiled run times of the same sessions, taken in turn. (Without the cost of borders, predictions of mixed MobileNets were 35 % too low.)
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError
from neural_tune.protocols import Inputs
from neural_tune.values import FLOAT_CANDIDATE, Candidate, Capability, FrozenMap, LatencyProfile, Mode, Role
from neural_tune.values.insight import Int8Regions
from neural_tune_onnxruntime import build as building
from neural_tune_onnxruntime import capability, session
from neural_tune_onnxruntime.attribution import Spent, attribute, carried
from neural_tune_onnxruntime.graph import Graph
from neural_tune_onnxruntime.inputs import Feed, InputInfo, to_feed
from neural_tune_onnxruntime.model import OnnxModel

# Per session with the profiler, and per session without. More tells little more: the errors that are left are the model's, not the clock's.
_SECONDS = 0.04
_LEAST_RUNS, _MOST_RUNS = 4, 50
_OPTIMIZED = "optimized.onnx"
_SUFFIX = "_kernel_time"
# What the fits may correct: more than a factor two means that the machine was disturbed, or the model is wrong.
_LEAST_SCALE, _MOST_SCALE = 0.5, 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What one session did with its time.

    Attributes:
        candidate: What it runs.
        optimized: The graph that the optimizer made of it.
        node_ms: Node -> milliseconds inside the kernel, as the profiler saw it.
        elements: Tensor of the model -> element count, for the tensors that nodes write.
        run_ms: Milliseconds of a whole run without the profiler.
    """

    candidate: Candidate
    optimized: Graph
    node_ms: Mapping[str, float]
    elements: Mapping[str, int]
    run_ms: float


def profile(
    model: OnnxModel, candidate: Candidate, statistics: Statistics | None, inputs: Inputs, threads: int
) -> LatencyProfile:
    """Return the times per op of the float model and of `candidate`, and the costs of its borders.

    Args:
        model: The float model.
        candidate: Full int8.
        statistics: From calibration.
        inputs: One batch; predictions hold for its size.
        threads: Threads of the runtime.

    Raises:
        AdapterError: the runtime refuses a candidate or breaks.
        DataError: the inputs do not fit the model.
    """
    candidates = [FLOAT_CANDIDATE, candidate, *_mixed(model, candidate)]
    feed = to_feed(inputs, tuple(InputInfo.of_graph(value) for value in model.proto.graph.input))
    recordings = record(model, candidates, statistics, feed, threads)
    spent = spend(model, recordings)
    offered = capability.query(model)
    sizes = {name: int(values.size) for name, values in feed.items()}
    for item in recordings:
        sizes.update(item.elements)
    int8 = Int8Regions.of(offered, candidate.ops).ops
    draft = LatencyProfile(
        float_ms=FrozenMap(spent[0].ops),
        # An anchor that was not found has no time; whatever else is not found is folded away.
        int8_ms=FrozenMap(
            {
                name: spent[1].ops.get(name, 0.0)
                for name in int8
                if name in spent[1].ops or model.kernels[name].role is not Role.ANCHOR
            }
        ),
        border_ms=FrozenMap(_borders(offered, spent, sizes, "enter") | _read_in_float(model, candidate)),
        leave_ms=FrozenMap(_borders(offered, spent, sizes, "leave") | _free(model, candidate)),
        batch_size=next((len(values) for values in feed.values() if values.ndim), 1),
        threads=threads,
    )
    return _fitted(draft, offered, recordings)


def record(
    model: OnnxModel, candidates: Sequence[Candidate], statistics: Statistics | None, feed: Feed, threads: int
) -> list[Recording]:
    """Return what the sessions of `candidates`, the first of which is the float model, do with their time on `feed`; nothing stays on disk."""
    with tempfile.TemporaryDirectory(prefix="neural_tune-profile-") as scratch:
        takes = [
            _Take.start(model, item, statistics, threads, Path(scratch) / str(number))
            for number, item in enumerate(candidates)
        ]
        profiled = [take.profiled(feed) for take in takes]
        run_ms = _run_ms([take.session for take in takes], feed, threads)
    recordings = []
    for item, (optimized, events), whole in zip(candidates, profiled, run_ms, strict=True):
        node_ms, elements = _read(events)
        sizes = {
            tensor: elements[node.name]
            for node in optimized.ops
            if node.name in elements
            for tensor in carried(model, node)
        }
        recordings.append(Recording(candidate=item, optimized=optimized, node_ms=node_ms, elements=sizes, run_ms=whole))
    return recordings


@dataclass(frozen=True, slots=True, eq=False)
class _Take:
    """A session of one candidate that is profiled first and goes on without the profiler."""

    session: session.Session
    folder: Path

    @classmethod
    def start(
        cls, model: OnnxModel, candidate: Candidate, statistics: Statistics | None, threads: int, folder: Path
    ) -> _Take:
        folder.mkdir()
        model, _, proto = building.written(model, candidate, statistics)
        chosen = session.options(threads, folder=model.store.folder)
        chosen.enable_profiling = True
        chosen.profile_file_prefix = str(folder / "profile")
        chosen.optimized_model_filepath = str(folder / _OPTIMIZED)
        chosen.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
        return cls(session.start(proto.SerializeToString(), chosen, model.provider), folder)

    def profiled(self, feed: Feed) -> tuple[Graph, list[dict[str, Any]]]:
        """Return the optimized graph and the events of the profiler, which ends with this."""
        # CPU time: other work on the machine must not use the window up.
        end, runs = time.process_time() + _SECONDS, 0
        while runs < _MOST_RUNS and (runs < _LEAST_RUNS or time.process_time() < end):
            _run(self.session, feed)
            runs += 1
        events = json.loads(Path(self.session.end_profiling()).read_text())
        return Graph.of(onnx.load(str(self.folder / _OPTIMIZED), load_external_data=False)), events


def spend(model: OnnxModel, recordings: Sequence[Recording]) -> list[Spent]:
    """Return what each recording spent on ops and borders, in milliseconds without the profiler.

    A node costs a * (its time in the profile) + b, where a and b make the sums fit the unprofiled run times best.
    """
    recordings = [_undisturbed(item) for item in recordings]
    rows = np.array([[sum(item.node_ms.values()), len(item.node_ms)] for item in recordings])
    runs = np.array([item.run_ms for item in recordings])
    factor, extra = _nonnegative(rows / runs[:, None], np.ones(len(runs)))
    costs = [{name: factor * value + extra for name, value in item.node_ms.items()} for item in recordings]
    spent = [attribute(model, item.optimized, cost) for item, cost in zip(recordings, costs, strict=True)]
    for item, found in zip(recordings, spent, strict=True):
        _book_own_conversions(model, item.candidate, found)
    return spent


def _book_own_conversions(model: OnnxModel, candidate: Candidate, spent: Spent) -> None:
    """Count for an op itself what turns its codes into float where no neighbour ever gets codes: the rows that a table in int8 hands out."""
    for tensor in list(spent.leave):
        writer = model.graph.producers.get(tensor)
        if writer is not None and _hands_out_float(writer.name, candidate):
            spent.ops[writer.name] += spent.leave.pop(tensor)


def _hands_out_float(name: str, candidate: Candidate) -> bool:
    """Return whether an op reads and writes float whatever its neighbours are: in every mode but the static one."""
    return name in candidate.ops and candidate.ops[name].mode is not Mode.STATIC


def _undisturbed(item: Recording) -> Recording:
    """Return `item` with node times that add up to no more than twice its run time: more was other work on the machine, not the profiler."""
    excess = sum(item.node_ms.values()) / (_MOST_SCALE * item.run_ms)
    if excess <= 1.0:
        return item
    return replace(item, node_ms={name: value / excess for name, value in item.node_ms.items()})


def _mixed(model: OnnxModel, candidate: Candidate) -> list[Candidate]:
    """Return `candidate` with every second anchor in float, and with the other ones in float."""
    anchors = [
        op.name for op in model.graph.ops if op.name in candidate.ops and model.kernels[op.name].role is Role.ANCHOR
    ]
    found = []
    for start in (0, 1):
        floats = set(anchors[start::2])
        kept = {name: config for name, config in candidate.ops.items() if name not in floats}
        if floats and len(floats) < len(anchors):
            found.append(Candidate.of(kept, candidate.ranges, candidate.recipes))
    return found


def _run_ms(sessions: Sequence[session.Session], feed: Feed, threads: int) -> list[float]:
    """Return the milliseconds of a run of each session, the first of which is the float model.

    All of them run in every round, in alternating order, and each is compared with float round by round: the ratio holds on a busy machine, the
    time alone does not.
    """
    rounds: list[list[float]] = []
    clock = time.process_time if threads == 1 else time.perf_counter
    end = time.process_time() + _SECONDS * len(sessions)
    while len(rounds) < _MOST_RUNS and (len(rounds) < _LEAST_RUNS or time.process_time() < end):
        order = range(len(sessions)) if len(rounds) % 2 else reversed(range(len(sessions)))
        times = {number: _seconds(sessions[number], feed, clock) for number in order}
        rounds.append([times[number] for number in range(len(sessions))])
    found = np.array(rounds)
    float_ms = float(np.median(found[:, 0])) * 1e3
    return [float_ms / float(np.median(found[:, 0] / found[:, number])) for number in range(len(sessions))]


def _seconds(started: session.Session, feed: Feed, clock: Callable[[], float]) -> float:
    begun = clock()
    _run(started, feed)
    return max(clock() - begun, 1e-9)


def _run(started: session.Session, feed: Feed) -> None:
    try:
        started.run(None, feed)
    except session.RUNTIME_ERRORS as error:
        message = f"the model breaks while it is profiled: {session.first_line(error)}"
        raise AdapterError(message) from error


def _read(events: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, int]]:
    """Return node -> milliseconds, the mean of the faster half of the runs, and node -> element count of its first output."""
    durations: dict[str, list[int]] = {}
    elements: dict[str, int] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            durations.setdefault(name.removesuffix(_SUFFIX), []).append(int(event["dur"]))
            shapes = event.get("args", {}).get("output_type_shape") or [{}]
            for shape in shapes[0].values():
                elements[name.removesuffix(_SUFFIX)] = prod(shape)
    times = {name: sorted(values)[: max(1, len(values) // 2)] for name, values in durations.items()}
    return {name: float(np.mean(values)) / 1e3 for name, values in times.items()}, elements


def _borders(offered: Capability, spent: Sequence[Spent], sizes: Mapping[str, int], side: str) -> dict[str, float]:
    """Return tensor -> milliseconds to cross it, measured where it was crossed, else from its element count."""
    layout = spent[0].layout
    seen: dict[str, list[float]] = {}
    for item in spent[1:]:
        for tensor, cost in getattr(item, side).items():
            # What the float model converts there anyway is part of its ops already.
            seen.setdefault(tensor, []).append(max(0.0, cost - layout.get(tensor, 0.0)))
    found = {tensor: float(np.mean(costs)) for tensor, costs in seen.items()}
    known = [(sizes[tensor], cost) for tensor, cost in found.items() if tensor in sizes]
    if not known:
        return found
    counts, costs = np.array([count for count, _ in known], float), np.array([cost for _, cost in known])
    slope, start = _nonnegative(np.stack([counts, np.ones_like(counts)], axis=1), costs)
    for op in offered.ops:
        for tensor in (*op.inputs, *op.outputs):
            if tensor not in found and tensor in sizes:
                found[tensor] = slope * sizes[tensor] + start
    return found


def _free(model: OnnxModel, candidate: Candidate) -> dict[str, float]:
    """Return the tensors that leave int8 at no cost: Gemm and MatMul hand out float as fast as codes, and what is not static does it always."""
    found = {
        op.outputs[0]: 0.0
        for op in model.graph.ops
        if model.kernels[op.name].role is Role.ANCHOR and not model.kernels[op.name].emits
    }
    own = (op for op in model.graph.ops if _hands_out_float(op.name, candidate))
    return found | {tensor: 0.0 for op in own for tensor in op.outputs if tensor}


def _read_in_float(model: OnnxModel, candidate: Candidate) -> dict[str, float]:
    """Return the tensors that enter int8 at no cost: nothing but ops that are not static reads them."""
    readers = model.graph.consumers
    return {
        tensor: 0.0
        for tensor, ops in readers.items()
        if tensor not in model.graph.constants
        and any(_hands_out_float(op.name, candidate) for op in ops)
        and not any(op.name in candidate.ops and not _hands_out_float(op.name, candidate) for op in ops)
    }


def _fitted(draft: LatencyProfile, offered: Capability, recordings: Sequence[Recording]) -> LatencyProfile:
    """Return `draft` scaled so that it predicts the recorded sessions: first float, then the borders, then full int8.

    What a node costs depends a little on its surroundings (caches, fusions with a neighbour), which the sums alone do not show.
    """
    draft = _scaled(draft, {"float_ms": _bounded(recordings[0].run_ms, draft.predict(offered, ()))})
    for _ in range(3):  # the borders of full int8 and the int8 times of the mixed candidates depend on each other
        mixed, wanted = [], []
        for item in recordings[2:]:
            without = _scaled(draft, {"border_ms": 0.0, "leave_ms": 0.0}).predict(offered, item.candidate.ops)
            mixed.append(draft.predict(offered, item.candidate.ops) - without)
            wanted.append(item.run_ms - without)
        scale = _bounded(sum(wanted), sum(mixed))
        draft = _scaled(draft, {"border_ms": scale, "leave_ms": scale})
        full = recordings[1]
        rest = _scaled(draft, {"int8_ms": 0.0}).predict(offered, full.candidate.ops)
        int8 = draft.predict(offered, full.candidate.ops) - rest
        draft = _scaled(draft, {"int8_ms": _bounded(full.run_ms - rest, int8)})
    return draft


def _scaled(draft: LatencyProfile, factors: Mapping[str, float]) -> LatencyProfile:
    changes: dict[str, Any] = {
        name: FrozenMap({key: value * factor for key, value in getattr(draft, name).items()})
        for name, factor in factors.items()
    }
    return replace(draft, **changes)


def _bounded(wanted: float, found: float) -> float:
    """Return wanted / found, held to what a correction may be; 1 where there is nothing to correct."""
    if found <= 0.0:
        return 1.0
    return min(max(wanted / found, _LEAST_SCALE), _MOST_SCALE)


def _nonnegative(matrix: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the least-squares solution of two unknowns that are not negative."""
    best = (float("inf"), 0.0, 0.0)
    for columns in ((0, 1), (0,), (1,)):
        found = np.zeros(2)
        found[list(columns)] = np.linalg.lstsq(matrix[:, list(columns)], target, rcond=None)[0]
        error = float(np.sum((matrix @ found - target) ** 2))
        if found.min() >= 0 and error < best[0]:
            best = (error, float(found[0]), float(found[1]))
    return best[1], best[2]
