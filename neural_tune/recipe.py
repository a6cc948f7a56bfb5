r"""A candidate as ordered rules that a person can read, edit, diff and replay without a search.

    precisions:
      p1: {activation: {dtype: uint8, symmetric: false}, mode: static, weight: {dtype: int8, granularity: per_channel}}
    rules:  # in order: the last rule that matches an op decides
      - {use: p1}
      - {type: MaxPool, use: float}
      - {op: layer1\.conv, use: float}

`op` and `type` are regular expressions that must match the whole name or type; a rule without them matches every op. Rules speak of
the tunable ops only: an op without an int8 kernel stays in float whatever `{use: p1}` says.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.options import close_to
from neural_tune.space import OpGroup, TuningSpace
from neural_tune.values import FLOAT, Candidate, OpConfig, TensorRange, from_jsonable, to_jsonable
from neural_tune.yaml_document import Document, flow, parse, shown

VERSION = 1
_FLOAT = "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One rule: which ops (None matches all), which precision, and where it stands in the document."""

    index: int
    use: OpConfig
    op: str | None = None
    type: str | None = None

    def matches(self, name: str, kind: str) -> bool:
        return _fits(self.op, name) and _fits(self.type, kind)


def write(path: Path, candidate: Candidate, space: TuningSpace, header: Mapping[str, str]) -> None:
    """Write the recipe of `candidate` to `path`; `header` becomes comments at its top."""
    path.write_text(to_recipe(candidate, space, header), encoding="utf-8")


def read(path: Path, space: TuningSpace) -> Candidate:
    """Return the candidate that the recipe at `path` stands for in `space`.

    Raises:
        ConfigError: the file cannot be read, or as for `from_recipe`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: cannot be read ({error})") from error
    return from_recipe(text, space, path.name)


def to_recipe(candidate: Candidate, space: TuningSpace, header: Mapping[str, str] | None = None) -> str:
    """Return the YAML text of `candidate`: a rule for all ops, one per type that differs, one per op that differs from its type.

    Raises:
        ConfigError: the candidate quantizes an op that is not tunable in `space`.
    """
    strange = sorted(set(candidate.ops) - set(space.op_names))
    if strange:
        raise ConfigError(f"recipe: the candidate quantizes {strange[:3]}, which are no tunable ops of this space")
    lines = _compressed(candidate, space)
    used = dict.fromkeys(config for _, config in lines if not config.is_float)
    names = {config: f"p{number}" for number, config in enumerate(used, 1)} | {FLOAT: _FLOAT}
    text = [
        "# A recipe of neural_tune: which op runs in which precision (neural_tune.recipe.read gives the candidate back)."
    ]
    text += [f"# {_comment(name)}: {_comment(value)}" for name, value in (header or {}).items()]
    text += [f"version: {VERSION}"]
    text += ["precisions:" if used else "precisions: {}"]
    text += [f"  {names[config]}: {flow(to_jsonable(config))}  # {config.describe()}" for config in used]
    text += ["rules:  # in order: the last rule that matches an op decides"]
    text += [f"  - {flow({**pattern, 'use': names[config]})}" for pattern, config in lines]
    if candidate.ranges:
        text += ["ranges:  # how the range of a tensor is found, whatever its ops say"]
        text += [f"  - {flow(to_jsonable(choice))}" for choice in candidate.ranges]
    if candidate.recipes:
        text += [f"recipes: {flow(list(candidate.recipes))}"]
    return "\n".join(text) + "\n"


def from_recipe(text: str, space: TuningSpace, name: str = "recipe.yaml") -> Candidate:
    """Return the candidate that a recipe stands for in `space`; the inverse of `to_recipe`.

    Raises:
        ConfigError: the text is no recipe, a rule matches nothing, or it asks for what the space does not offer. All at once, each with
            its line and path.
    """
    document = parse(text, name)
    errors: list[str] = []
    data = _checked(document, errors)
    precisions = _precisions(document, data, errors)
    lines = _lines(document, data, precisions, errors)
    if not errors:
        _check_reach(document, lines, space, errors)
    ops = {} if errors else _choices(document, lines, space, errors)
    ranges = _ranges(document, data, space, errors)
    recipes = _recipes(document, data, space, errors)
    if errors:
        raise ConfigError("\n".join(errors))
    return Candidate.of(ops, ranges, recipes)


def _compressed(candidate: Candidate, space: TuningSpace) -> list[tuple[dict[str, str], OpConfig]]:
    """Return (pattern, config) in order: default, types, exceptions."""
    types = {op.name: op.type for op in space.capability.ops}
    configs = {op: candidate.config_of(op) for op in space.op_names}
    default = _most_common(configs.values())
    lines: list[tuple[dict[str, str], OpConfig]] = [({}, default)]
    by_type: dict[str, OpConfig] = {}
    for kind in dict.fromkeys(types[op] for op in configs):
        of_kind = [config for op, config in configs.items() if types[op] == kind]
        by_type[kind] = _most_common(of_kind, default)
        if by_type[kind] != default:
            lines.append(({"type": _escaped(kind)}, by_type[kind]))
    lines += [({"op": _escaped(op)}, config) for op, config in configs.items() if config != by_type[types[op]]]
    # What the user kept in float is not tunable here, but a reader (or a space without that rule) must see it.
    lines += [({"op": _escaped(op)}, FLOAT) for op in space.fixed]
    return lines


def _most_common(configs: Iterable[OpConfig], preferred: OpConfig = FLOAT) -> OpConfig:
    """Return the most frequent config; of equals `preferred` if it is one of them, else the first."""
    counted = Counter(configs)
    most = max(counted.values(), default=0)
    return preferred if counted[preferred] == most else next(config for config in counted if counted[config] == most)


def _comment(text: str) -> str:
    """Return `text` on one line, without what YAML forbids even in a comment."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def _escaped(name: str) -> str:
    """Escape what has a meaning in a regular expression; re.escape would also escape harmless signs and hurt reading."""
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", name)


def _fault(document: Document, path: tuple[str | int, ...], message: str) -> str:
    return f"{document.where(path)}: {shown(path)}: {message}" if path else f"{document.where(path)}: {message}"


def _checked(document: Document, errors: list[str]) -> Mapping[str, Any]:
    data = document.data
    known = ("version", "precisions", "rules", "ranges", "recipes")
    if not isinstance(data, Mapping):
        raise ConfigError(_fault(document, (), f"found {data!r:.60}, expected a mapping with {', '.join(known)}"))
    errors += [
        _fault(document, (str(key),), f"unknown key{close_to(key, known)}; expected {', '.join(known)}")
        for key in data
        if key not in known
    ]
    if data.get("version") != VERSION:
        errors.append(_fault(document, ("version",), f"found {data.get('version')!r}, expected {VERSION}"))
    return data


def _precisions(document: Document, data: Mapping[str, Any], errors: list[str]) -> dict[str, OpConfig]:
    found: dict[str, OpConfig] = {_FLOAT: FLOAT}
    given = data.get("precisions") or {}
    if not isinstance(given, Mapping):
        errors.append(_fault(document, ("precisions",), f"found {given!r:.60}, expected names with their precision"))
        return found
    for name, value in given.items():
        path = ("precisions", str(name))
        try:
            config = from_jsonable(OpConfig, value, f"precisions.{name}")
        except ConfigError as error:
            errors.append(f"{document.where(path)}: {error}")
            config = FLOAT
        if name == _FLOAT:
            errors.append(_fault(document, path, "'float' means untouched and cannot be given another meaning"))
        found[str(name)] = config
    return found


def _lines(
    document: Document, data: Mapping[str, Any], precisions: Mapping[str, OpConfig], errors: list[str]
) -> list[_Line]:
    given = data.get("rules")
    if not isinstance(given, list):
        errors.append(_fault(document, ("rules",), f"found {given!r:.60}, expected a list of rules"))
        return []
    lines = []
    for index, rule in enumerate(given):
        before = len(errors)
        if not isinstance(rule, Mapping) or not set(rule) <= {"op", "type", "use"} or "use" not in rule:
            expected = "{use: precision}, maybe with op and type"
            errors.append(_fault(document, ("rules", index), f"found {rule!r:.80}, expected {expected}"))
            continue
        for key in ("op", "type"):
            if key in rule and not _is_pattern(rule[key]):
                message = f"found {rule[key]!r}, expected a regular expression; escape a plain name"
                errors.append(_fault(document, ("rules", index, key), message))
        if rule["use"] not in precisions:
            message = (
                f"found {rule['use']!r}{close_to(rule['use'], precisions)}; expected one of {', '.join(precisions)}"
            )
            errors.append(_fault(document, ("rules", index, "use"), message))
        if len(errors) == before:
            lines.append(_Line(index=index, use=precisions[rule["use"]], op=rule.get("op"), type=rule.get("type")))
    return lines


def _is_pattern(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def _check_reach(document: Document, lines: list[_Line], space: TuningSpace, errors: list[str]) -> None:
    """Refuse rules that do nothing: a typo, another model, or an op that cannot be quantized."""
    ops, tunable = space.capability.ops, set(space.op_names)
    for line in lines:
        if line.op is None and line.type is None:
            continue
        matched = [op for op in ops if line.matches(op.name, op.type)]
        if not matched:
            key, wanted = ("op", line.op) if line.op is not None else ("type", line.type)
            known = {op.name if key == "op" else op.type for op in ops}
            message = f"{wanted!r} matches no op of the model{close_to(wanted, known)}"
            errors.append(_fault(document, ("rules", line.index, key), message))
        elif not line.use.is_float and not any(op.name in tunable for op in matched):
            why = space.fixed.get(matched[0].name) or matched[0].why or "it has no choice"
            message = f"{matched[0].name!r} ({matched[0].type}) can only be float here: {why}"
            errors.append(_fault(document, ("rules", line.index), message))


def _choices(document: Document, lines: list[_Line], space: TuningSpace, errors: list[str]) -> dict[str, OpConfig]:
    types = {op.name: op.type for op in space.capability.ops}
    chosen: dict[str, OpConfig] = {}
    for group in space.groups:
        deciding = {op: _last_match(lines, op, types[op]) for op in group.ops}
        errors += _disagreement(document, group, deciding)
        for op, line in deciding.items():
            config = line.use if line else FLOAT
            if line and config not in group.choices:
                offered = "; ".join(choice.describe() for choice in group.choices)
                message = f"asks for {config.describe()} on {op!r} ({types[op]}), but there it may be: {offered}"
                if json.dumps(config.describe()) in json.dumps(offered):
                    message += f". The precise one asked for is {flow(to_jsonable(config))}"
                errors.append(_fault(document, ("rules", line.index), message))
            chosen[op] = config
    return chosen


def _last_match(lines: list[_Line], op: str, kind: str) -> _Line | None:
    return next((line for line in reversed(lines) if line.matches(op, kind)), None)


def _disagreement(document: Document, group: OpGroup, deciding: Mapping[str, _Line | None]) -> list[str]:
    configs = {line.use if line else FLOAT for line in deciding.values()}
    if len(configs) == 1:
        return []
    line = max((line for line in deciding.values() if line), key=lambda line: line.index)
    message = f"the ops {', '.join(group.ops)} must share one precision, but the rules give them {len(configs)}"
    return [_fault(document, ("rules", line.index), message)]


def _ranges(document: Document, data: Mapping[str, Any], space: TuningSpace, errors: list[str]) -> list[TensorRange]:
    tensors = {name for op in space.capability.ops for name in (*op.inputs, *op.outputs)}
    given = data.get("ranges") or []
    if not isinstance(given, list):
        errors.append(_fault(document, ("ranges",), f"found {given!r:.60}, expected a list"))
        return []
    found = []
    for index, item in enumerate(given):
        try:
            choice = from_jsonable(TensorRange, item, f"ranges[{index}]")
        except ConfigError as error:
            errors.append(f"{document.where(('ranges', index))}: {error}")
            continue
        if choice.tensor not in tensors:
            message = f"the model has no tensor {choice.tensor!r}{close_to(choice.tensor, tensors)}"
            errors.append(_fault(document, ("ranges", index, "tensor"), message))
        found.append(choice)
    twice = sorted(name for name, count in Counter(choice.tensor for choice in found).items() if count > 1)
    if twice:
        errors.append(_fault(document, ("ranges",), f"found {twice} more than once, expected each tensor once"))
    return found


def _recipes(document: Document, data: Mapping[str, Any], space: TuningSpace, errors: list[str]) -> list[str]:
    given = data.get("recipes") or []
    if not isinstance(given, list):
        errors.append(_fault(document, ("recipes",), f"found {given!r:.60}, expected a list of names"))
        return []
    known = space.capability.recipes
    for index, name in enumerate(given):
        if name not in known:
            message = f"found {name!r}{close_to(name, known)}; expected one of {', '.join(known) or 'none on offer'}"
            errors.append(_fault(document, ("recipes", index), message))
    return [str(name) for name in given]


def _fits(pattern: str | None, text: str) -> bool:
    return pattern is None or re.fullmatch(pattern, text) is not None
