"""A YAML text as plain data that knows its lines, with duplicate keys refused.

Only plain data comes out (SafeLoader): no tag makes a Python object.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from neural_tune.errors import ConfigError

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Data and where it was written.

    Attributes:
        data: Mappings, lists and scalars.
        name: File name, for messages.
        lines: Path of a key or list item -> line, from 1; for what was not written there, 0.
        origins: Path -> where it was set instead, such as "--set tuning.objective=size".
    """

    data: Any
    name: str
    lines: Mapping[Path, int] = field(default_factory=dict)
    origins: Mapping[Path, str] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """Return the line of `path`, or of the nearest thing around it."""
        return next((self.lines[around] for around in _outwards(path) if around in self.lines), 0)

    def where(self, path: Path) -> str:
        """Return "job.yaml:12" for the line of `path`, or of the nearest thing around it."""
        origin = next((self.origins[around] for around in _outwards(path) if around in self.origins), "")
        line = self.line(path)
        place = f"{self.name}:{line}" if line else self.name
        # What was set inside a section may be what contradicts the rest of it.
        inside = [text for at, text in self.origins.items() if len(at) > len(path) and at[: len(path)] == path and path]
        return origin or " with ".join((place, *inside))

    def with_value(self, path: Path, value: Any, origin: str) -> Document:
        """Return the document with `value` at `path`, whatever was there.

        Raises:
            ConfigError: something on the way is no mapping.
        """
        *parents, last = path
        data = dict(self.data) if isinstance(self.data, Mapping) else {}
        here = data
        for depth, part in enumerate(parents, 1):
            inner = here.get(part)
            if not isinstance(inner, Mapping | None):
                raise ConfigError(f"{origin}: {shown(path[:depth])} is {inner!r:.60}, which has no {path[depth]!r}")
            here[part] = here = dict(inner or {})
        here[last] = value
        return replace(self, data=data, origins={**self.origins, path: origin})


def _outwards(path: Path) -> Iterator[Path]:
    return (path[:length] for length in range(len(path), -1, -1))


def parse(text: str, name: str) -> Document:
    """Return the document of `text`.

    Numbers such as 1e-3 are numbers, as in YAML 1.2 (PyYAML alone takes them for text).

    Raises:
        ConfigError: the text is no YAML, or a mapping has a key twice; all such keys at once.
    """
    yaml = _library()
    try:
        node = yaml.compose(text, Loader=_loader())
        data = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: no valid YAML: {getattr(error, 'problem', None) or error}") from error
    lines: dict[Path, int] = {}
    errors: list[str] = []
    if node is not None:
        _walk(node, (), lines, errors, name, set())
    if errors:
        raise ConfigError("\n".join(errors))
    return Document(data=data, name=name, lines=lines)


def scalar(text: str, origin: str = "") -> Any:
    """Return the value of one YAML expression, such as "20", "1e-3", "{name: random}" or "basic".

    Raises:
        ConfigError: the text is no YAML; the message begins with `origin`.
    """
    try:
        return parse(text, "").data
    except ConfigError as error:
        raise ConfigError(
            "\n".join(f"{origin or repr(text)}{_after_line(line)}" for line in str(error).splitlines())
        ) from error


def _after_line(message: str) -> str:
    """Return a message of one expression without its line, which is 1."""
    return re.sub(r"^(:\d+)?:? ?", ": ", message)


def flow(value: Any) -> str:
    """Return plain data as YAML on one line."""
    options = {"default_flow_style": True, "width": float("inf")}
    text: str = _library().safe_dump(value, allow_unicode=True, **options).removesuffix("...\n").strip()
    if not text.isprintable():  # such as U+0085, which PyYAML writes as it is and reads as a blank
        text = _library().safe_dump(value, allow_unicode=False, **options).removesuffix("...\n").strip()
    return text


def shown(path: Path) -> str:
    """Return a path as a person writes it: tuning.strategy.name, quantization.op_wise['^conv.*'], transform[0]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


@functools.cache
def _loader() -> Any:
    """Return a SafeLoader that also reads the numbers of YAML 1.2."""
    kind: Any = type("Loader", (_library().SafeLoader,), {})
    number = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    kind.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return kind


def _library() -> Any:
    """Import yaml at first use: `neural-tune --help` does without it."""
    return importlib.import_module("yaml")


def _walk(node: Any, path: Path, lines: dict[Path, int], errors: list[str], name: str, seen: set[int]) -> None:
    """Note the line of every key and item below `node`; an aliased node is noted where it comes first."""
    if id(node) in seen:
        return
    seen.add(id(node))
    lines.setdefault(path, node.start_mark.line + 1)
    if node.id == "sequence":
        for position, item in enumerate(node.value):
            _walk(item, (*path, position), lines, errors, name, seen)
    if node.id == "mapping":
        first: dict[str, int] = {}
        for key, value in node.value:
            word, line = str(key.value), key.start_mark.line + 1
            here = (*path, word)
            if word in first and word != "<<":
                errors.append(f"{name}:{line}: {shown(here)}: found twice, first in line {first[word]}; keep one")
            first.setdefault(word, line)
            lines[here] = line
            _walk(value, here, lines, errors, name, seen)
