"""What a job file may say: a table for the `schema` library, and the check that reports every fault at once.

The sections are those of INC 1.x. Four things a plain schema cannot say stand beside it: `Leaf` (a value, with its JSON Schema), `Short` (a
scalar stands for a mapping), `Each` (any name, one section) and `Unsupported` (INC had it; this version has not, or gives it no meaning).
The JSON Schema for editors is made from the same table, in `neural_tune.editor_schema`.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neural_tune.config import APPROACHES, EXECUTORS
from neural_tune.options import close_to
from neural_tune.yaml_document import Document, Path, shown

# INC 1.x's words, and ours for them.
APPROACH_WORDS = {
    "post_training_static_quant": "static",
    "post_training_dynamic_quant": "dynamic",
    "post_training_auto_quant": "auto",
    "post_training_weight_only": "weight_only",
    "quant_aware_training": "qat",
}
FRAMEWORK_WORDS = {
    "onnxrt_qdqops": "onnxruntime",
    "onnxrt_qlinearops": "onnxruntime",
    "onnxrt_integerops": "onnxruntime",
    "pytorch_fx": "pytorch",
    "pytorch_ipex": "pytorch",
    "tensorflow_itex": "tensorflow",
    "keras": "tensorflow",
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value.

    Attributes:
        expected: What a person is told.
        validator: A `schema.Schema` that also coerces.
        json: The JSON Schema of what is accepted, for editors.
    """

    expected: str
    validator: Any
    json: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Short:
    """A section of which one key may be given alone: `strategy: auto` for `strategy: {name: auto}`."""

    key: str
    section: Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Each:
    """A mapping from names of the user's choice to one kind of section."""

    section: Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A key of INC. Values that mean "off" are let through; others are a fault, or only a notice when `is_harmless`."""

    hint: str
    is_harmless: bool = False
    off: tuple[Any, ...] = (None, False)


@dataclass(slots=True)
class Findings:
    """Faults and notices about one document, gathered while it is read."""

    document: Document
    notices: list[str] = field(default_factory=list)
    _errors: list[tuple[int, str]] = field(default_factory=list)

    def error(self, path: Path, message: str) -> None:
        """Note a fault at `path`."""
        subject = f"{shown(path)}: " if path else ""
        self.error_text(path, f"{subject}{message}")

    def error_text(self, path: Path, text: str, *, is_placed: bool = False) -> None:
        """Note a fault whose text names its path already, and its place in the file too if `is_placed`."""
        where = "" if is_placed else f"{self.document.where(path)}: "
        self._errors.append((self.document.line(path), f"{where}{text}"))

    @property
    def errors(self) -> list[str]:
        """All faults in the order of the file."""
        return [text for _, text in sorted(self._errors, key=lambda fault: fault[0])]


def check(findings: Findings) -> dict[str, Any]:
    """Return the document's data with values coerced and everything faulty left out; faults go to `findings`."""
    checked = _check(table(), findings.document.data, (), findings)
    return checked if isinstance(checked, dict) else {}


_NOTHING = object()  # a value that was faulty


def _check(node: Any, value: Any, path: Path, findings: Findings) -> Any:
    if isinstance(node, Short):
        short = isinstance(value, str | int | float) and not isinstance(value, bool)
        return _check(node.section, {node.key: value} if short else value, path, findings)
    if isinstance(node, Unsupported):
        is_off = any(value == off and type(value) is type(off) for off in node.off)
        if not is_off and not node.is_harmless:
            findings.error(path, f"not supported: {node.hint}")
        elif not is_off:
            findings.notices.append(f"{shown(path)} has no effect: {node.hint}")
        return _NOTHING
    if isinstance(node, Each):
        return _check_mapping(value, path, findings, lambda _: node.section, "a mapping from names to sections")
    if isinstance(node, Mapping):
        return _check_section(node, value, path, findings)
    return _check_leaf(node, value, path, findings)


def _check_section(node: Mapping[Any, Any], value: Any, path: Path, findings: Findings) -> Any:
    nodes = {getattr(key, "schema", key): inner for key, inner in node.items()}
    checked = _check_mapping(value, path, findings, nodes.get, f"a mapping with {', '.join(nodes)}", tuple(nodes))
    if isinstance(value, Mapping | None):
        for key in node:
            if isinstance(key, str) and (value or {}).get(key) is None:
                findings.error((*path, key), "missing")
    return checked


def _check_mapping(
    value: Any,
    path: Path,
    findings: Findings,
    node_of: Callable[[Any], Any],
    expected: str,
    known: tuple[str, ...] = (),
) -> Any:
    if not isinstance(value, Mapping | None):
        findings.error(path, f"found {value!r:.60}, expected {expected}")
        return _NOTHING
    checked: dict[str, Any] = {}
    for key, inner in (value or {}).items():
        node = node_of(key)
        if node is None:
            message = f"unknown key{close_to(key, known)}; expected one of {', '.join(known)}"
            findings.error((*path, str(key)), message)
        elif inner is not None:
            found = _check(node, inner, (*path, str(key)), findings)
            checked |= {} if found is _NOTHING else {str(key): found}
    return checked


def _check_leaf(node: Any, value: Any, path: Path, findings: Findings) -> Any:
    try:
        return node.validator.validate(value)
    except _schema().SchemaError:
        findings.error(path, f"found {value!r:.60}, expected {node.expected}")
        return _NOTHING


def _schema() -> Any:
    """Import schema at first use: `neural-tune --help` does without it."""
    return importlib.import_module("schema")


@functools.cache
def table() -> dict[Any, Any]:
    """Return the sections of a job; an `Optional` key may be left out, a plain one may not."""
    optional = _schema().Optional
    loader = {
        optional("batch_size"): _integer(1),
        "dataset": _mapping("one kind of dataset with its options"),
        optional("transform"): _leaf(
            "a mapping (or list of mappings) of transforms",
            _is_one_of_types(dict, list),
            json={"anyOf": [{"type": "object", "minProperties": 1}, {"type": "array", "minItems": 1}]},
        ),
        optional("last_batch"): _word("rollover", "discard"),
        optional("filter"): Unsupported("filters come with a later version; filter in a factory"),
        optional("shuffle"): Unsupported("batches come in the order of the file", is_harmless=True),
        optional("distributed"): Unsupported("data is read in one process", is_harmless=True),
    }
    cores = {
        optional("cores_per_instance"): _integer(1),
        **{
            optional(name): Unsupported("one instance is measured, with cores_per_instance threads", is_harmless=True)
            for name in ("num_of_instance", "inter_num_of_threads", "intra_num_of_threads", "kmp_blocktime")
        },
    }
    criterion = {
        optional("relative"): _number(),
        optional("absolute"): _number(),
        optional("higher_is_better"): _flag(),
    }
    later = {
        optional(name): Unsupported("this section of INC is not part of this version")
        for name in (
            *("graph_optimization", "mixed_precision", "model_conversion", "pruning"),
            *("distillation", "auto_distillation", "nas", "train"),
        )
    }
    return {
        optional("version"): _leaf(
            "a version",
            lambda value: isinstance(value, int | float | str),
            json={"type": ["number", "string", "boolean"]},
        ),
        optional("device"): _text(),
        "model": {
            optional("path"): _text(),
            optional("factory"): _leaf(
                '"package.module:callable" or a mapping with callable and args',
                _is_one_of_types(str, dict),
                json=_some("string", "object"),
            ),
            optional("framework"): _text(),
            optional("name"): _text(),
            optional("inputs"): _names(),
            optional("outputs"): _names(),
        },
        optional("quantization"): {
            optional("approach"): _word(*APPROACHES, words=APPROACH_WORDS),
            optional("calibration"): {optional("sampling_size"): _sampling_size(), optional("dataloader"): loader},
            optional("model_wise"): _mapping("wishes for every op"),
            optional("optype_wise"): _mapping("op types with wishes"),
            optional("op_wise"): _mapping("op names with wishes"),
            optional("exclude"): _names(least=0),
            optional("recipes"): _mapping("recipes with their setting"),
            optional("backend"): _text(),
            optional("quant_format"): _text(),
            optional("reduce_range"): _flag(),
            optional("options"): _mapping("options of the adapter"),
            optional("train"): Short("function", _train()),
            optional("advance"): Unsupported("name bias_correction under quantization.recipes"),
        },
        "evaluation": {
            "accuracy": {
                optional("metric"): _leaf(
                    'a name, a mapping such as "topk: 1", or a list',
                    _is_one_of_types(str, dict, list),
                    json=_some("string", "object", "array"),
                ),
                optional("multi_metrics"): _mapping("metrics with their options"),
                optional("function"): _text(),
                optional("dataloader"): loader,
                optional("threads"): _integer(1),
                optional("configs"): cores,
                optional("iteration"): Unsupported("a model is accepted on the whole evaluation set", off=(None, -1)),
                optional("postprocess"): {
                    optional("transform"): {
                        optional("LabelShift"): _leaf("an integer", _is_integer, json={"type": "integer"}),
                        **{
                            optional(name): Unsupported("postprocess in a metric of your own, metric: module:callable")
                            for name in ("Collect", "SquadV1", "SquadV1ModelZoo")
                        },
                    }
                },
            },
            optional("performance"): {
                optional("warmup"): _integer(0),
                optional("iteration"): _iterations(),
                optional("iterations"): _iterations(),
                optional("seconds"): _number(),
                optional("batch_size"): _integer(1),
                optional("threads"): _integer(1),
                optional("configs"): cores,
                optional("dataloader"): Unsupported(
                    "speed is measured on the first calibration batch; see evaluation.performance.batch_size",
                    is_harmless=True,
                ),
                optional("postprocess"): Unsupported("speed is that of the model alone", is_harmless=True),
            },
        },
        optional("tuning"): {
            optional("strategy"): _strategy(),
            optional("accuracy_criterion"): {**criterion, optional("metrics"): Each(criterion)},
            optional("objective"): _names(is_csv=False),
            optional("multi_objectives"): {
                "objective": _names(is_csv=False),
                optional("weight"): _list_of("numbers", _is_number, item={"type": "number"}),
                optional("higher_is_better"): _list_of(
                    "true or false", lambda item: isinstance(item, bool), item={"type": "boolean"}
                ),
                optional("pareto"): _flag(),
            },
            optional("exit_policy"): {
                optional("timeout"): _number(),
                optional("max_trials"): _integer(1),
                optional("max_passes"): _number(),
                optional("performance_only"): Unsupported("a model is only accepted on its accuracy"),
            },
            optional("random_seed"): _integer(0),
            optional("workspace"): Short("path", {optional("path"): _text(), optional("resume"): _text()}),
            optional("executor"): Short(
                "name", {optional("name"): _word(*EXECUTORS), optional("workers"): _integer(1)}
            ),
            optional("tensorboard"): Unsupported("the run directory holds every number", is_harmless=True),
            optional("diagnosis"): Unsupported("every run writes its report", is_harmless=True),
        },
        **later,
    }


def _train() -> dict[Any, Any]:
    """INC describes optimizer and loss here; here it is a function that trains the model it is given, in place."""
    optional = _schema().Optional
    hint = "give function: module:callable, which trains the model it is given in place"
    words = ("optimizer", "criterion", "start_epoch", "end_epoch", "epoch", "iteration", "frequency", "dataloader")
    return {"function": _text(), **{optional(name): Unsupported(hint) for name in (*words, "hostfile", "postprocess")}}


def _leaf(expected: str, *checks: Any, json: Mapping[str, Any]) -> Leaf:
    schema = _schema()
    return Leaf(expected, schema.Schema(schema.And(*checks)), {**json, "description": expected})


def _text() -> Leaf:
    return _leaf(
        "a text", lambda value: isinstance(value, str) and value != "", json={"type": "string", "minLength": 1}
    )


def _flag() -> Leaf:
    return _leaf("true or false", lambda value: isinstance(value, bool), json={"type": "boolean"})


def _integer(least: int) -> Leaf:
    json = {"type": "integer", "minimum": least}
    return _leaf(f"an integer, {least} or more", _is_integer, lambda value: value >= least, json=json)


def _iterations() -> Leaf:
    json = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": -1}]}
    return _leaf("an integer, 1 or more, or -1", _is_integer, lambda value: value >= 1 or value == -1, json=json)


def _number() -> Leaf:
    percent = {"type": "string", "pattern": r"^\s*\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*%\s*$"}
    return _leaf(
        'a number, 0 or more, or a percentage such as "1%"',
        _schema().Use(_percent),
        _is_number,
        lambda value: value >= 0,
        json={"anyOf": [{"type": "number", "minimum": 0}, percent]},
    )


def _mapping(what: str) -> Leaf:
    return _leaf(f"a mapping of {what}", lambda value: isinstance(value, dict), json={"type": "object"})


def _word(*allowed: str, words: Mapping[str, str] | None = None) -> Leaf:
    use = _schema().Use(lambda value: (words or {}).get(value, value))
    return _leaf(
        f"one of {', '.join(allowed)}",
        lambda value: isinstance(value, str),
        use,
        lambda value: value in allowed,
        json={"enum": [*allowed, *(words or {})]},
    )


def _names(*, is_csv: bool = True, least: int = 1) -> Leaf:
    """A list of texts, or one text (INC: several with commas)."""

    def listed(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return [item.strip() for item in value.split(",")] if is_csv else [value]

    item = {"type": "string", "minLength": 1}
    return _list_of("texts", lambda item: isinstance(item, str) and item != "", listed, item=item, least=least)


def _list_of(
    what: str,
    is_item: Callable[[Any], bool],
    listed: Callable[[Any], Any] | None = None,
    *,
    item: Mapping[str, Any],
    least: int = 1,
) -> Leaf:
    def as_list(value: Any) -> Any:
        value = listed(value) if listed else value
        return value if isinstance(value, list) else [value]

    def is_good(value: Any) -> bool:
        return len(value) >= least and all(map(is_item, value))

    json = {"anyOf": [item, {"type": "array", "minItems": least, "items": item}]}
    return _leaf(f"a list of {what}", _schema().Use(as_list), is_good, json=json)


def _sampling_size() -> Leaf:
    """An integer; of INC's several sizes, which were tried one after the other, the largest (the reader gives a notice)."""
    integer = {"type": "integer", "minimum": 1}
    several = {"type": "string", "pattern": r"^\s*[1-9][0-9]*(\s*,\s*[1-9][0-9]*)*\s*$"}
    return _leaf(
        "one integer, 1 or more (calibration runs once)",
        _schema().Use(lambda value: max(sampling_sizes(value), default=0)),
        lambda value: value >= 1,
        json={"anyOf": [integer, {"type": "array", "minItems": 1, "items": integer}, several]},
    )


def sampling_sizes(value: Any) -> list[int]:
    """Return the sizes that a number, a list, or INC's "50, 100" names; none where one of them is no size."""
    parts: list[Any] = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    parts = [int(part) if isinstance(part, str) and part.strip().isdecimal() else part for part in parts]
    return parts if all(_is_integer(part) and part >= 1 for part in parts) else []


def _strategy() -> Leaf:
    """A name, or a mapping with the name and the options of the strategy."""
    use = _schema().Use(lambda value: {"name": value} if isinstance(value, str) else value)
    is_named = lambda value: isinstance(value, dict) and isinstance(value.get("name"), str)  # noqa: E731
    named = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    return _leaf(
        "a name, or a mapping with name and the strategy's options",
        use,
        is_named,
        json={"anyOf": [{"type": "string"}, named]},
    )


def _some(*kinds: str) -> dict[str, Any]:
    """Return the JSON Schema of a text, mapping or list that is not empty."""
    least = {"string": "minLength", "object": "minProperties", "array": "minItems"}
    return {"anyOf": [{"type": kind, least[kind]: 1} for kind in kinds]}


def _is_one_of_types(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and bool(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any) -> Any:
    """Return 0.01 for "1%"; anything else as it is."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        return float(value.rstrip()[:-1]) / 100
    return value
