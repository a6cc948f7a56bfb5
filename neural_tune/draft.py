"""A first job file for a model: what can be guessed is guessed, what cannot is asked for, and the result runs.

Without data the job runs on random numbers, and accuracy is agreement with the float model: good for a first look at speed and size, and for seeing
that the model can be quantized at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from neural_tune import data_files, plugins
from neural_tune.callables import import_callable
from neural_tune.errors import AdapterError, ConfigError, DataError, NeuralTuneError
from neural_tune.made_inputs import (
    batch_size_of,
    blaming_names,
    check_names,
    parse_shapes,
    random_inputs,
    specs_of,
    unknown_shapes,
)
from neural_tune.protocols import AdapterOptions, AnyAdapter, Array, CapturesByExample, DescribesInputs, InputSpec
from neural_tune.run_directory import harmless
from neural_tune.transforms import stacked, transforms
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune.yaml_document import flow

Ask = Callable[[str, tuple[str, ...]], str]
_Transform: TypeAlias = tuple[tuple[str, Mapping[str, Any]], ...]
_CALIBRATION, _EVALUATION, _BATCH = 64, 256, 16
_TRIED = 128  # samples on which ways to prepare them are compared
_X_WORDS = ("x_val", "x_test", "x", "inputs", "input", "images", "image", "features", "data")
_Y_WORDS = ("y_val", "y_test", "y", "labels", "label", "targets", "target", "classes")
_CALIBRATION_WORDS = ("x_calib", "x_calibration", "calibration", "calib", "x_train", "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user said.

    Attributes:
        model: Path, or "module:callable".
        data: An .npz file or a folder of images; None makes numbers up.
        x: Array of the inputs; empty guesses.
        y: Array of the labels; empty guesses.
        calibration: Array of the calibration inputs; empty guesses.
        shapes: Shapes of inputs, such as "x=1,3,224,224".
        framework: Name of the adapter; empty lets the model decide.
        output: Where the job is written.
        is_forced: True overwrites.
        ask: Asks a question with choices; None never asks.
    """

    model: str
    data: Path | None = None
    x: str = ""
    y: str = ""
    calibration: str = ""
    shapes: tuple[str, ...] = ()
    framework: str = ""
    output: Path = Path("job.yaml")
    is_forced: bool = False
    ask: Ask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What was written.

    Attributes:
        job: The job file.
        data: The file of made-up data; None where the user has some.
        notes: What the user should know.
    """

    job: Path
    data: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """The data part of a job: two loaders, and how accuracy is measured."""

    calibration: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    transform: _Transform = ()
    batch_size: int = _BATCH
    sampling_size: int = 100
    metric: Mapping[str, Any] = field(default_factory=lambda: {"topk": 1})
    criterion: str = "relative: 1%"
    about: str = ""
    made: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model that was loaded, and its one input; both None where nobody can tell the input."""

    hold: Any = None
    spec: InputSpec | None = None


def draft(wishes: Wishes) -> Draft:
    """Write a job file, and made-up data where there are none.

    Raises:
        ConfigError: the job file exists, the model cannot be found, or something must be said that was not.
        NeuralTuneError: the adapter cannot load the model.
    """
    if wishes.output.exists() and not wishes.is_forced:
        raise ConfigError(f"init: {wishes.output} exists; --force overwrites it, --output FILE writes another one")
    model = _model(wishes.model)
    adapter = plugins.adapter_for(model, wishes.framework)
    folder = wishes.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    shapes = parse_shapes(wishes.shapes)
    options = AdapterOptions()
    if isinstance(adapter, CapturesByExample) and shapes:
        if len(shapes) == 1:  # a single input is passed without its name: the model would not notice a wrong one
            check_names(adapter, model, shapes)
        # The captured model may take batches of the example's size only: one sample at a time would be slow.
        shapes = {
            name: replace(spec, shape=(_BATCH, *spec.shape[1:])) if spec.shape[0] == 1 else spec
            for name, spec in shapes.items()
        }
        options = AdapterOptions(example=_example(shapes))
    if wishes.data is None and isinstance(adapter, CapturesByExample) and not shapes:
        raise unknown_shapes(adapter, model)
    if wishes.data is None:
        with blaming_names(adapter, model, shapes):
            hold = adapter.load(model, options)
        data = _made_up(adapter, hold, specs_of(adapter, hold, shapes), wishes)
    elif wishes.data.is_dir():
        data = _images(adapter, model, wishes, shapes)
    else:
        data = _arrays(adapter, model, wishes, shapes)
    wishes.output.write_text(_text(wishes, adapter, data), encoding="utf-8")
    return Draft(job=wishes.output, data=data.made, notes=data.notes)


def _model(text: str) -> object:
    if Path(text).exists():
        return text
    if ":" in text:
        made: object = import_callable(text, Path.cwd())()
        return made
    raise ConfigError(f"init: found {text!r}, but there is no such file; expected a path or package.module:callable")


def _example(shapes: Mapping[str, InputSpec]) -> object:
    """Return one batch for an adapter that must call a model to capture it."""
    made = random_inputs(tuple(shapes.values()), batch_size_of(tuple(shapes.values())) or 1)
    return next(iter(made.values())) if len(made) == 1 else made


def _made_up(adapter: AnyAdapter, hold: Any, specs: Sequence[InputSpec], wishes: Wishes) -> _Data:
    """Write random inputs with the float model's own answers as labels."""
    fixed = batch_size_of(specs)
    batch = fixed or _BATCH
    total = -(-(_CALIBRATION + _EVALUATION) // batch) * batch
    inputs = random_inputs(specs, total)
    outputs = _answers(adapter, hold, inputs, batch)
    split = -(-_CALIBRATION // batch) * batch
    file = wishes.output.with_name(f"{wishes.output.stem}_data.npz")
    if file.exists() and not wishes.is_forced:
        raise ConfigError(f"init: {file} exists; --force overwrites it")
    metric, criterion, labels = _agreement(outputs[split:])
    arrays: dict[str, Array] = {f"calibration_{name}": array[:split] for name, array in inputs.items()}
    arrays |= {f"evaluation_{name}": array[split:] for name, array in inputs.items()}
    np.savez(file, **arrays, labels=labels)  # type: ignore[arg-type] # numpy's stub takes every keyword for allow_pickle
    names = list(inputs)

    def source(part: str) -> dict[str, Any]:
        x: Any = f"{part}_{names[0]}" if len(names) == 1 else {name: f"{part}_{name}" for name in names}
        return {"npz": {"path": file.name, "x": x}}

    evaluation = source("evaluation")
    evaluation["npz"]["y"] = "labels"
    note = f"{file} holds random numbers, and accuracy means agreement with the float model: put your data there before you trust a result"
    return _Data(
        calibration=source("calibration"),
        evaluation=evaluation,
        batch_size=batch,
        sampling_size=split,
        metric=metric,
        criterion=criterion,
        about=f"RANDOM numbers and the float model's own answers, made by init. Replace {file.name} by your data.",
        made=file,
        notes=(note,),
    )


def _answers(adapter: AnyAdapter, hold: Any, inputs: Mapping[str, Array], batch: int) -> Array:
    """Return the first output of the float model."""
    built = adapter.build(hold, FLOAT_CANDIDATE, None, None)
    total = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, total, batch):
        rows = {name: array[start : start + batch] for name, array in inputs.items()}
        parts.append(adapter.run(built, next(iter(rows.values())) if len(rows) == 1 else rows)[0])
    return np.concatenate(parts)


def _agreement(outputs: Array) -> tuple[dict[str, Any], str, Array]:
    """Return metric, criterion and labels by which a model is compared with the float model's answers."""
    if outputs.dtype.kind != "f":
        raise ConfigError(
            "init: the model's first output holds no floating-point numbers, so no metric can be guessed: pass --data with labels"
        )
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return {"topk": 1}, "absolute: 0.05", outputs.argmax(axis=1)
    tolerated = max(float(outputs.astype(np.float64).var()) * 0.01, 1e-12)
    return {"mse": {}}, f"absolute: {tolerated:.3g}", outputs


def _arrays(adapter: AnyAdapter, model: object, wishes: Wishes, shapes: Mapping[str, InputSpec]) -> _Data:
    """Find inputs and labels among the arrays of an .npz file."""
    path = wishes.data or Path()
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise ConfigError(f"--data: {path} cannot be read as an .npz file ({error})") from error
    names = tuple(arrays)
    x = wishes.x or _guess(names, _X_WORDS, "Which array holds the inputs?", "--x", wishes.ask)
    labels = tuple(name for name in names if name != x and len(arrays[name]) == len(arrays.get(x, ())))
    y = wishes.y or _guess(labels, _Y_WORDS, "Which array holds the labels?", "--y", wishes.ask)
    unknown = [name for name in (x, y, wishes.calibration) if name and name not in arrays]
    if unknown:
        raise ConfigError(f"--data: {path} has no array {unknown[0]!r}, expected one of {', '.join(names)}")
    calibration = wishes.calibration or next(
        (name for name in _CALIBRATION_WORDS if name in arrays and arrays[name].shape[1:] == arrays[x].shape[1:]), x
    )
    opened = _opened(adapter, model, shapes, arrays[x])
    spec = opened.spec
    transform, notes = _fitting(arrays[x], spec)
    if arrays[x].dtype == np.uint8 and ("Rescale", {}) in transform:
        transform, notes = _tried(adapter, opened, transform, arrays[x], arrays[y]) or (transform, notes)
    source = os.path.relpath(path.resolve(), wishes.output.resolve().parent)
    metric, criterion = _metric_for(arrays[y])
    if calibration == x:
        notes = (
            *notes,
            f"calibration reads the first samples of {x!r}: name others with --calibration if you have them",
        )
    return _Data(
        calibration={"npz": {"path": Path(source).as_posix(), "x": calibration}},
        evaluation={"npz": {"path": Path(source).as_posix(), "x": x, "y": y}},
        transform=transform,
        batch_size=(spec.shape[0] if spec and spec.shape and spec.shape[0] else None) or 32,
        metric=metric,
        criterion=criterion,
        notes=notes,
    )


def _guess(names: Sequence[str], words: Sequence[str], question: str, option: str, ask: Ask | None) -> str:
    """Return the name that is meant; ask where several could be."""
    lower = {name.lower(): name for name in names}
    known = [lower[word] for word in words if word in lower]
    if known:
        return known[0]
    if len(names) == 1:
        return names[0]
    if ask is not None and names:
        return ask(question, tuple(names))
    raise ConfigError(f"init: {question} Found {', '.join(names) or 'none that fits'}; name one with {option}")


def _opened(adapter: AnyAdapter, model: object, shapes: Mapping[str, InputSpec], x: Array) -> _Opened:
    """Return the model and its one input. A model that is captured by calling it is called with each form that samples may have.

    Raises:
        ConfigError: the model has several inputs.
        NeuralTuneError: it cannot be loaded, or takes the samples in none of the forms.
    """
    fault: NeuralTuneError | None = None
    for example in _examples(x) if isinstance(adapter, CapturesByExample) else (None,):
        try:
            hold = adapter.load(model, AdapterOptions(example=example))
            specs = _specs(adapter, hold, shapes, example)
        except ConfigError:
            return _Opened()
        except (AdapterError, DataError) as error:
            fault = fault or error
            continue
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise ConfigError(
                f"init: the model has the inputs {names}; write x as a mapping in the job, for instance x: {{{specs[0].name}: array}}"
            )
        return _Opened(hold, specs[0])
    raise fault or ConfigError("init: the model cannot be called")


def _specs(
    adapter: AnyAdapter, hold: Any, shapes: Mapping[str, InputSpec], example: Array | None
) -> tuple[InputSpec, ...]:
    """Return the inputs; of a model that only a call can tell, those of the example that it takes."""
    if example is None or shapes or isinstance(adapter, DescribesInputs):
        return specs_of(adapter, hold, shapes)
    adapter.run(adapter.build(hold, FLOAT_CANDIDATE, None, None), example)
    names = adapter.query(hold).inputs
    return tuple(InputSpec(name=name, dtype="float32", shape=(None, *example.shape[1:])) for name in names)


def _examples(x: Array) -> Iterator[Array]:
    """Yield a batch as it is, with the channels of images first, and with a channel axis."""
    batch = x[:_BATCH].astype(np.float32)
    yield batch
    if batch.ndim == 4 and batch.shape[3] in (1, 3, 4):
        yield np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    if batch.ndim == 3:
        yield batch[:, None]


def _fitting(x: Array, spec: InputSpec | None) -> tuple[_Transform, tuple[str, ...]]:
    """Return the transforms that bring samples into the form of an input, and what to look at."""
    if spec is None:
        return (), ()
    steps: list[tuple[str, Mapping[str, Any]]] = []
    notes: list[str] = []
    wanted, found = spec.shape[1:], x.shape[1:]
    if not _fits(found, wanted):
        steps += _reshaping(found, wanted, spec.name)
    if x.dtype.kind in "iu" and np.dtype(spec.dtype).kind == "f":
        if x.dtype == np.uint8:
            steps.append(("Rescale", {}))
            notes.append(
                "inputs are divided by 255; if the model was trained with mean and std too, add Normalize: {mean: [...], std: [...]}"
            )
        else:
            steps.append(("Cast", {"dtype": spec.dtype}))
            notes.append(
                f"inputs are {x.dtype} and become {spec.dtype} as they are; if they are codes, use Rescale: {{shift: ..., scale: ...}}"
            )
    elif x.dtype != np.dtype(spec.dtype):
        steps.append(("Cast", {"dtype": spec.dtype}))
    return tuple(steps), tuple(notes)


def _tried(
    adapter: AnyAdapter, opened: _Opened, scaled: _Transform, x: Array, labels: Array
) -> tuple[_Transform, tuple[str, ...]] | None:
    """Return how the float model wants its pixels: from 0 to 1 or as they are, whichever gets more labels right; None where that cannot be told."""
    if opened.spec is None or _metric_for(labels)[0] != {"topk": 1}:
        return None
    plain = tuple(("Cast", {"dtype": opened.spec.dtype}) if step == ("Rescale", {}) else step for step in scaled)
    batch = opened.spec.shape[0] or min(_BATCH, len(x))
    count = min(_TRIED, len(x)) // batch * batch
    shares = []
    for steps in (scaled, plain):
        prepared: Any = x[:count]
        for step in transforms([{name: options} for name, options in steps]):
            prepared = step.apply(prepared)
        outputs = _answers(adapter, opened.hold, {opened.spec.name: stacked(prepared)}, batch) if count else np.zeros(0)
        if outputs.ndim != 2:
            return None
        shares.append(float(np.mean(outputs.argmax(axis=1) == labels[:count])))
    told = f"{max(shares):.0%} of {count} samples are right so, {min(shares):.0%} otherwise"
    how = "are divided by 255" if shares[0] >= shares[1] else "stay from 0 to 255"
    hint = "; if the model was trained with mean and std too, add Normalize: {mean: [...], std: [...]}"
    return (scaled if shares[0] >= shares[1] else plain), (f"inputs {how}: {told}{hint}",)


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(b is None or a == b for a, b in zip(found, wanted, strict=True))


def _reshaping(found: Sequence[int], wanted: Sequence[int | None], name: str) -> list[tuple[str, Mapping[str, Any]]]:
    if len(found) == 3 and _fits((found[2], found[0], found[1]), wanted):
        return [("Transpose", {"perm": [2, 0, 1]})]
    if len(found) == 3 and _fits((found[1], found[2], found[0]), wanted):
        return [("Transpose", {"perm": [1, 2, 0]})]
    for axis in (0, -1):
        grown = (1, *found) if axis == 0 else (*found, 1)
        if _fits(grown, wanted):
            return [("ExpandDims", {"axis": axis})]
    shown = ["?" if length is None else length for length in wanted]
    raise ConfigError(
        f"init: samples have the shape {list(found)}, but input {name!r} takes {shown}: no transform could be guessed"
    )


def _metric_for(labels: Array) -> tuple[dict[str, Any], str]:
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return {"topk": 1}, "relative: 1%"
    return {"mse": {}}, "relative: 5%"


def _images(adapter: AnyAdapter, model: object, wishes: Wishes, shapes: Mapping[str, InputSpec]) -> _Data:
    root = wishes.data or Path()
    classes = data_files.class_folders(root)
    if not classes:
        raise ConfigError(f"--data: {root} has no folders, expected one folder of images per class")
    rows, _ = data_files.image_folder(root, classes, "RGB")
    try:
        first = np.asarray(rows[0:1][0])
    except DataError as error:
        raise ConfigError(f"--data: {error}") from error
    spec = _opened(adapter, model, shapes, first[None]).spec
    lengths = spec.shape[1:] if spec and len(spec.shape) == 4 else (224, 224, 3)
    is_first = lengths[0] in (1, 3) and lengths[-1] not in (1, 3)
    height, width = lengths[1:] if is_first else lengths[:2]
    steps: list[tuple[str, Mapping[str, Any]]] = [("Resize", {"size": [height or 224, width or 224]}), ("Rescale", {})]
    steps += [("Transpose", {"perm": [2, 0, 1]})] if is_first else []
    source = Path(os.path.relpath(root.resolve(), wishes.output.resolve().parent)).as_posix()
    grey = lengths[0 if is_first else -1] == 1
    options = {"path": source, **({"mode": "L"} if grey else {})}
    return _Data(
        calibration={"image_folder": options},
        evaluation={"image_folder": options},
        transform=tuple(steps),
        batch_size=(spec.shape[0] if spec and spec.shape[0] else None) or 32,
        notes=(
            "images are resized and divided by 255; look at the transforms, they must be those of training (CenterCrop, Normalize ...)",
            "calibration reads the first images of the same folder",
        ),
    )


def _text(wishes: Wishes, adapter: AnyAdapter, data: _Data) -> str:
    """Return the job as commented YAML."""
    is_path = Path(wishes.model).exists()
    if is_path:
        where = Path(os.path.relpath(Path(wishes.model).resolve(), wishes.output.resolve().parent)).as_posix()
        model = {"name": harmless(Path(wishes.model).stem), "path": where, "framework": adapter.name}
    else:
        model = {"name": harmless(wishes.model.partition(":")[2]), "factory": wishes.model, "framework": adapter.name}
    about = f"      # {data.about}\n" if data.about else ""
    steps = "".join(f"        {name}: {flow(options)}\n" for name, options in data.transform)
    transform, alias = (f"      transform: &prepared\n{steps}", "      transform: *prepared\n") if steps else ("", "")
    return f"""\
# A tuning job for {wishes.model}, written by `neural-tune init`. Run it with: neural-tune run {wishes.output}
# Every key: docs/yaml.md, or `neural-tune schema` for your editor. Paths are relative to this file.
model:
{_lines(model, 2)}
quantization:
  approach: static                # static | dynamic | weight_only | auto
  calibration:
    sampling_size: {data.sampling_size}             # samples whose value ranges are looked at; labels are not needed
    dataloader:
{about}      batch_size: {data.batch_size}
      dataset: {flow(data.calibration)}
{transform}  # exclude: [name_of_an_op]     # ops that stay in float; `neural-tune inspect MODEL` lists them

evaluation:
  accuracy:
    metric: {flow(data.metric)}            # `neural-tune list` shows the others; or function: "my_module:my_function"
    dataloader:
      batch_size: {data.batch_size}
      dataset: {flow(data.evaluation)}
{alias}  performance:
    {f"batch_size: {data.batch_size}":<30}# samples per call; the speed-up depends on it: say the size that the model will serve
    threads: 1                    # speed is measured with as many, float and int8 in turns

tuning:
  strategy: auto
  accuracy_criterion: {{{data.criterion}}}    # the largest loss you accept; relative or absolute
  objective: latency              # latency | throughput | size | memory, or a list
  exit_policy: {{timeout: 0, max_trials: 100}}
  workspace: {{path: nt_workspace}}
"""


def _lines(data: Mapping[str, Any], indent: int) -> str:
    return "".join(f"{' ' * indent}{name}: {flow(value)}\n" for name, value in data.items())
