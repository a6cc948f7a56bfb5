"""`bench MODEL...`: latency, throughput, size and memory of several models, interleaved."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_tune.commands.outcome import MET, Commands, say, show, show_json
from neural_tune.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from neural_tune.contest import Standing
    from neural_tune.protocols import AnyAdapter, Array


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "bench",
        help="compare the speed, size and memory of models",
        description="Measure models alternately in one process; ratios are to the first one. Take models of one framework, with the same inputs.",
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="model files, run directories, or folders written by save"
    )
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="inputs by name (default: random numbers)")
    parser.add_argument(
        "--shape", action="append", default=[], metavar="INPUT=LENGTHS", help="such as x=1,3,224,224 or ids=1,128:int64"
    )
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="samples per batch (default: the model's, else 1)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads of the runtime (default %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="time to measure for (default %(default)s)"
    )
    parser.add_argument("--framework", default="", metavar="NAME", help="the adapter, where several know the models")
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure memory, which takes a fresh process per model"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_bench)


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer, 1 or more")
    return number


@dataclass(frozen=True, slots=True)
class _Entry:
    """One model, ready to run."""

    name: str
    artifact: Path
    adapter: AnyAdapter
    built: Any
    is_restored: bool


def _bench(arguments: argparse.Namespace) -> int:
    from neural_tune.contest import contest  # noqa: PLC0415

    entries = [_entry(name, arguments.framework, arguments.threads) for name in arguments.models]
    inputs, batch_size = _inputs(entries[0], arguments)
    runs = [(entry.name, partial(entry.adapter.run, entry.built, inputs)) for entry in entries]
    standings = contest(runs, batch_size=batch_size, seconds=arguments.seconds)
    memory = [None] * len(entries) if arguments.no_memory else _memory(entries, inputs, arguments.threads)
    rows = [_row(entry, standing, peak) for entry, standing, peak in zip(entries, standings, memory, strict=True)]
    if arguments.json:
        show_json({"batch_size": batch_size, "threads": arguments.threads, "models": rows})
    else:
        is_chosen = arguments.batch_size is None and not arguments.data
        _show(rows, batch_size, arguments.threads)
        if is_chosen:
            show(
                "another batch gives other ratios: --batch-size N; the figure of a run was taken at that run's own batch"
            )
    return MET


def _entry(name: str, framework: str, threads: int) -> _Entry:
    """Return a model that runs: an artifact of ours, or any float model of the framework."""
    from neural_tune import plugins  # noqa: PLC0415
    from neural_tune.protocols import AdapterOptions  # noqa: PLC0415
    from neural_tune.values import FLOAT_CANDIDATE  # noqa: PLC0415

    path = Path(name)
    if not path.exists():
        raise ConfigError(f"bench: found {name!r}, but there is no such file")
    stored = path / "result.json"
    if stored.is_file():
        artifact, framework = _saved(path, json.loads(stored.read_text(encoding="utf-8")))
        adapter = plugins.adapter_for(str(artifact), framework)
        return _Entry(name, artifact, adapter, adapter.restore(artifact, threads), is_restored=True)
    adapter = plugins.adapter_for(name, framework)
    try:
        return _Entry(name, path, adapter, adapter.restore(path, threads), is_restored=True)
    except AdapterError:
        hold = adapter.load(name, AdapterOptions())
        return _Entry(name, path, adapter, adapter.build(hold, FLOAT_CANDIDATE, None, threads), is_restored=False)


def _saved(folder: Path, stored: Any) -> tuple[Path, str]:
    """Return artifact and framework of a run directory, or of a folder that `save` wrote."""
    file = Path(str(stored.get("artifact") or "")).name
    found = next((path for path in (folder / file, folder / "model" / file) if file and path.exists()), None)
    if found is None:
        raise ConfigError(f"bench: {folder} holds no model")
    return found, str(stored["framework"])


def _inputs(entry: _Entry, arguments: argparse.Namespace) -> tuple[dict[str, Array], int]:
    import numpy as np  # noqa: PLC0415

    from neural_tune.made_inputs import batch_size_of, parse_shapes, random_inputs, specs_of  # noqa: PLC0415
    from neural_tune.protocols import AdapterOptions, DescribesInputs  # noqa: PLC0415

    if arguments.data:
        try:
            with np.load(arguments.data, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as error:
            raise ConfigError(f"--data: {arguments.data} cannot be read ({error})") from error
        size = arguments.batch_size or min(len(array) for array in arrays.values())
        return {name: array[:size] for name, array in arrays.items()}, size
    shapes = parse_shapes(arguments.shape)
    hold = (
        entry.adapter.load(str(entry.artifact), AdapterOptions())
        if isinstance(entry.adapter, DescribesInputs)
        else None
    )
    specs = specs_of(entry.adapter, hold, shapes)
    size = arguments.batch_size or batch_size_of(specs) or 1
    return random_inputs(specs, size), size


def _memory(entries: Sequence[_Entry], inputs: dict[str, Array], threads: int) -> list[int | None]:
    """Return the peak bytes of each model in a process of its own; None, with a word on stderr, where it cannot be measured."""
    import numpy as np  # noqa: PLC0415

    from neural_tune.measure import peak_memory  # noqa: PLC0415

    found: list[int | None] = []
    with tempfile.TemporaryDirectory(prefix="neural_tune_") as folder:
        file = Path(folder) / "inputs.npz"
        np.savez(file, **inputs)  # type: ignore[arg-type] # numpy's stub takes every keyword for allow_pickle
        for entry in entries:
            try:
                found.append(
                    peak_memory(entry.adapter.name, entry.artifact, file, threads) if entry.is_restored else None
                )
            except AdapterError as error:
                say(f"no memory of {entry.name}: {error}")
                found.append(None)
    return found


def _row(entry: _Entry, standing: Standing, peak: int | None) -> dict[str, Any]:
    return {
        "model": entry.name,
        "framework": entry.adapter.name,
        "latency_ms": standing.ms,
        "latency_interval_ms": [standing.ms_low, standing.ms_high],
        "throughput": standing.throughput,
        "ratio": standing.ratio,
        "ratio_interval": [standing.ratio_low, standing.ratio_high],
        "rounds": standing.rounds,
        # An adapter knows what belongs to a model, weights in a file of their own among it.
        "size": entry.adapter.size(entry.built),
        "peak_memory": peak,
    }


def _show(rows: Sequence[dict[str, Any]], batch_size: int, threads: int) -> None:
    from neural_tune import words  # noqa: PLC0415
    from neural_tune.report import tables  # noqa: PLC0415

    lines = []
    for row in rows:
        low, high = row["latency_interval_ms"]
        ratio = f"{row['ratio']:.2f}x ({row['ratio_interval'][0]:.2f} to {row['ratio_interval'][1]:.2f})"
        peak = words.size(row["peak_memory"]) if row["peak_memory"] else "-"
        latency = f"{row['latency_ms']:.3g} ms ({low:.3g} to {high:.3g})"
        lines.append((row["model"], latency, f"{row['throughput']:.3g}/s", ratio, words.size(row["size"]), peak))
    headers = ("model", "latency (95 % CI)", "throughput", "times as fast as the first", "size", "peak memory")
    how = f"batch {batch_size}, {words.plural(threads, 'thread')}, {words.plural(rows[0]['rounds'], 'round')}, interleaved"
    show(tables.table_of(headers, lines), "", how)
