"""The tuning space: what the adapter offers, restricted by what the user asked for.

Rules come in three scopes, model-wise < op-type < op-name, and within a scope in the order in which they were written: for every
field of an op (mode, activation dtype, weight granularity ...) the last rule that speaks of it wins. The merged
restriction then filters the op's choices. FLOAT always stays as the last choice, because falling back must be possible.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import prod

from neural_tune.errors import ConfigError
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

_NO_RECIPES: Mapping[str, object] = FrozenMap()
# A message names this many precisions, and this many ops with the same fault; the rest would bury them.
_MOST_OFFERS, _MOST_ERRORS = 8, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRestriction:
    """Allowed values for one tensor of an op; an empty tuple allows everything."""

    dtype: tuple[DType, ...] = ()
    symmetric: tuple[bool, ...] = ()
    granularity: tuple[Granularity, ...] = ()
    observer: tuple[Observer, ...] = ()
    group_size: tuple[int, ...] = ()

    def admits(self, spec: QuantSpec | None) -> bool:
        """Return whether `spec` holds only allowed values; a tensor that is not quantized passes."""
        if spec is None:
            return True
        return all(
            not getattr(self, item.name) or getattr(spec, item.name) in getattr(self, item.name)
            for item in fields(self)
        )

    def overridden_by(self, later: SpecRestriction) -> SpecRestriction:
        """Return this restriction with every field that `later` speaks of replaced."""
        spoken = {item.name: getattr(later, item.name) for item in fields(later) if getattr(later, item.name)}
        return replace(self, **spoken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """What a rule asks of the ops it matches.

    Attributes:
        keep_float: True forces float (exclude, or a float dtype was asked for), False allows int8 again where an earlier rule
            forbade it, None says nothing.
        mode: Allowed modes besides float.
        activation: Allowed specs of the inputs.
        weight: Allowed specs of the constant operand.
    """

    keep_float: bool | None = None
    mode: tuple[Mode, ...] = ()
    activation: SpecRestriction = field(default_factory=SpecRestriction)
    weight: SpecRestriction = field(default_factory=SpecRestriction)

    def admits(self, config: OpConfig) -> bool:
        """Return whether an int8 `config` is allowed."""
        if self.keep_float or (self.mode and config.mode not in self.mode):
            return False
        return self.activation.admits(config.activation) and self.weight.admits(config.weight)

    def overridden_by(self, later: Restriction) -> Restriction:
        """Return this restriction with every field that `later` speaks of replaced."""
        return Restriction(
            keep_float=self.keep_float if later.keep_float is None else later.keep_float,
            mode=later.mode or self.mode,
            activation=self.activation.overridden_by(later.activation),
            weight=self.weight.overridden_by(later.weight),
        )


class Scope(StrEnum):
    """How far a rule reaches, from the weakest to the strongest."""

    MODEL = "model_wise"
    OP_TYPE = "op_type"
    OP_NAME = "op_name"


_STRENGTH = {Scope.MODEL: 0, Scope.OP_TYPE: 1, Scope.OP_NAME: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of the user's wishes.

    Attributes:
        scope: What the pattern is matched against.
        pattern: A plain name (or type), or a regular expression that must match the whole of it.
        restriction: What is asked for.
        source: Where the user wrote it, for messages, such as "op_name_dict['conv1']".
    """

    scope: Scope
    pattern: str
    restriction: Restriction
    source: str = ""

    def __post_init__(self) -> None:
        """Compile the pattern once to refuse a broken one early."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            message = (
                f"{self.label}: {self.pattern!r} is no regular expression ({error}); escape the name with re.escape"
            )
            raise ConfigError(message) from error

    @property
    def label(self) -> str:
        """The words by which messages name this rule."""
        return self.source or f"{self.scope.value} rule {self.pattern!r}"

    def matches(self, op: OpCapability) -> bool:
        """Return whether the rule speaks of `op`."""
        if self.scope is Scope.MODEL:
            return True
        text = op.name if self.scope is Scope.OP_NAME else op.type
        return text == self.pattern or re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpGroup:
    """Ops that share one choice; most groups hold a single op.

    Attributes:
        name: The common group name, or the op's own name.
        ops: Names of the members, in execution order.
        type: Op type of the first anchor (or of the first member).
        role: ANCHOR if any member is one.
        choices: Common precisions, most preferred first, ending in FLOAT.
    """

    name: str
    ops: tuple[str, ...]
    type: str
    role: Role
    choices: tuple[OpConfig, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSpace:
    """All candidates that the adapter offers and the user allows.

    Attributes:
        capability: Where the space comes from.
        groups: The tunable groups, in execution order; each has at least one choice besides FLOAT.
        fixed: Op name -> reason, for quantizable ops that a user rule keeps in float.
        notices: Things the user should see, such as a type rule that matched nothing.
        recipes: Recipes that the user switched on: every candidate of the space has them.
        optional_recipes: Recipes on offer that the user said nothing about: a strategy may use them.
    """

    capability: Capability
    groups: tuple[OpGroup, ...]
    fixed: FrozenMap[str] = field(default_factory=FrozenMap)
    notices: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    optional_recipes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, capability: Capability, rules: Iterable[Rule] = (), recipes: Mapping[str, object] = _NO_RECIPES
    ) -> TuningSpace:
        """Return the space of `capability` under `rules`, with the user's word on `recipes` (name -> on or off).

        Raises:
            ConfigError: an op-name rule matches no op, or a rule leaves an op (or a group) nothing but float without having
                asked for float. All such errors are reported at once.
        """
        ordered = sorted(rules, key=lambda rule: _STRENGTH[rule.scope])
        notices = _check_reach(capability, ordered)
        kept: dict[str, tuple[OpConfig, ...]] = {}
        fixed: dict[str, str] = {}
        stuck = {op.name: op.why or "it offers float only" for op in capability.ops if _is_stuck(op)}
        errors: list[str] = []
        for op in capability.ops:
            if not op.is_quantizable:
                continue
            matching = [rule for rule in ordered if rule.matches(op)]
            choices = _restrict(op, matching)
            if len(choices) > 1:
                kept[op.name] = choices
            elif _merge(matching).keep_float:
                fixed[op.name] = f"user rule: {_float_rule(matching).label}"
            elif matching and len(op.choices) > 1:
                errors.append(_nothing_left(op, matching))
            elif op.group:
                stuck[op.name] = "it offers float only, unless a rule asks for more"
        groups = _group(capability, kept, fixed, stuck, errors)
        if errors:
            more = [f"... and {len(errors) - _MOST_ERRORS} ops more like these"] if len(errors) > _MOST_ERRORS else []
            raise ConfigError("\n".join([*errors[:_MOST_ERRORS], *more]))
        unknown = sorted(name for name, setting in recipes.items() if setting and name not in capability.recipes)
        offered = ", ".join(capability.recipes) or "none"
        return cls(
            capability=capability,
            groups=groups,
            fixed=FrozenMap(fixed),
            notices=(
                *notices,
                *(f"recipe {name!r} is not offered here (offered: {offered}); ignored" for name in unknown),
            ),
            recipes=tuple(name for name in capability.recipes if recipes.get(name)),
            optional_recipes=tuple(name for name in capability.recipes if name not in recipes),
        )

    @property
    def size(self) -> int:
        """Number of candidates, the float model left out."""
        return prod(len(group.choices) for group in self.groups) - 1

    @property
    def op_names(self) -> tuple[str, ...]:
        """Names of all tunable ops."""
        return tuple(name for group in self.groups for name in group.ops)

    @property
    def precision(self) -> str:
        """The word for what every group prefers, such as "int8" or "int4"; "low precision" where they differ."""
        words = {group.choices[0].word for group in self.groups}
        return words.pop() if len(words) == 1 else "low precision"

    def preferred(self) -> Candidate:
        """Return the candidate with the most preferred choice everywhere: full int8."""
        return self.candidate({group.name: group.choices[0] for group in self.groups})

    def candidate(self, choices: Mapping[str, OpConfig]) -> Candidate:
        """Return the candidate in which each named group has the given config and every other group is float.

        Raises:
            KeyError: a name is no group of this space.
        """
        members = {group.name: group.ops for group in self.groups}
        return Candidate.of({op: config for name, config in choices.items() for op in members[name]}, (), self.recipes)

    def with_choice(self, candidate: Candidate, group: OpGroup, config: OpConfig) -> Candidate:
        """Return `candidate` with the ops of one group set to `config`."""
        return candidate.with_ops(dict.fromkeys(group.ops, config))

    def choice_of(self, candidate: Candidate, group: OpGroup) -> OpConfig:
        """Return the config that `candidate` gives the members of `group`."""
        return candidate.config_of(group.ops[0])

    def contains(self, candidate: Candidate) -> bool:
        """Return whether every group has one of its choices, nothing else is quantized, and the recipes are allowed."""
        known = set(self.op_names)
        if any(name not in known for name in candidate.ops):
            return False
        if not set(self.recipes) <= set(candidate.recipes) <= {*self.recipes, *self.optional_recipes}:
            return False
        return all(
            len({candidate.config_of(name) for name in group.ops}) == 1
            and self.choice_of(candidate, group) in group.choices
            for group in self.groups
        )

    def neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        """Yield every candidate that differs from `candidate` in the choice of one group."""
        for group in self.groups:
            current = self.choice_of(candidate, group)
            for config in group.choices:
                if config != current:
                    yield self.with_choice(candidate, group, config)

    def __iter__(self) -> Iterator[Candidate]:
        """Yield all candidates lazily, the preferred one first, the last group varying fastest; never the float model."""
        names = [group.name for group in self.groups]
        for choices in itertools.product(*(group.choices for group in self.groups)):
            candidate = self.candidate(dict(zip(names, choices, strict=True)))
            if not candidate.is_float:
                yield candidate


def _merge(rules: Iterable[Rule]) -> Restriction:
    merged = Restriction()
    for rule in rules:
        merged = merged.overridden_by(rule.restriction)
    return merged


def _restrict(op: OpCapability, rules: list[Rule]) -> tuple[OpConfig, ...]:
    """Return the choices left. What the runtime also runs (`extra`) comes in where a wish cannot be met without it.

    A model-wise wish alone does not wake an op that has nothing but extras: those are float by default for a reason.
    """
    restriction = _merge(rules)
    kept = [config for config in op.choices if not config.is_float and restriction.admits(config)]
    if not kept and (any(rule.scope is not Scope.MODEL for rule in rules) or (rules and len(op.choices) > 1)):
        kept = [config for config in op.extra if restriction.admits(config)]
    return (*kept, FLOAT)


def _float_rule(rules: list[Rule]) -> Rule:
    return next(rule for rule in reversed(rules) if rule.restriction.keep_float)


def _nothing_left(op: OpCapability, rules: list[Rule]) -> str:
    offered = sorted({config.describe() for config in (*op.choices, *op.extra) if not config.is_float})
    if len(offered) > _MOST_OFFERS:
        offered = [*offered[:_MOST_OFFERS], f"... ({len(offered)} in all; `neural-tune inspect` shows them)"]
    labels = ", ".join(rule.label for rule in rules)
    why = f" ({op.why})" if op.why else ""
    return (
        f"{labels}: leaves op {op.name!r} ({op.type}) no precision but float; the adapter offers {offered}{why}. "
        "Loosen the rule, or exclude the op to keep it in float"
    )


def _check_reach(capability: Capability, rules: Iterable[Rule]) -> tuple[str, ...]:
    """Refuse op-name rules that match nothing (a typo would silently do nothing); notice such type rules."""
    errors, notices = [], []
    for rule in rules:
        if any(rule.matches(op) for op in capability.ops):
            continue
        if rule.scope is Scope.OP_NAME:
            close = difflib.get_close_matches(rule.pattern, [op.name for op in capability.ops], n=3, cutoff=0.4)
            hint = f"; similar names: {', '.join(close)}" if close else ""
            errors.append(f"{rule.label}: {rule.pattern!r} matches no op of the model{hint}")
        else:
            types = sorted({op.type for op in capability.ops})
            notices.append(f"{rule.label}: the model has no op of type {rule.pattern!r} (it has {', '.join(types)})")
    if errors:
        raise ConfigError("\n".join(errors))
    return tuple(notices)


def _is_stuck(op: OpCapability) -> bool:
    """Return whether `op` has float only and holds its group there; a pass-through op follows and holds nobody."""
    return bool(op.group) and not op.is_quantizable and op.role is not Role.PASS_THROUGH


def _group(
    capability: Capability,
    kept: Mapping[str, tuple[OpConfig, ...]],
    fixed: dict[str, str],
    stuck: Mapping[str, str],
    errors: list[str],
) -> tuple[OpGroup, ...]:
    """Join ops that must share a choice; a member that stays in float takes the whole group along."""
    members: dict[str, list[OpCapability]] = {}
    for op in capability.ops:
        if op.name in kept or (op.group and (op.name in fixed or op.name in stuck)):
            members.setdefault(op.group or op.name, []).append(op)
    groups = []
    for name, ops in members.items():
        floats = {op.name: fixed.get(op.name) or stuck[op.name] for op in ops if op.name in fixed or op.name in stuck}
        if floats:
            first, why = next(iter(floats.items()))
            for op in ops:
                if op.name in kept:
                    fixed[op.name] = f"shares a choice with {first!r} ({why})"
            continue
        common = tuple(config for config in kept[ops[0].name] if all(config in kept[op.name] for op in ops[1:]))
        if len(common) < 2:
            errors.append(f"group {name!r} ({', '.join(op.name for op in ops)}): its ops have no int8 choice in common")
            continue
        lead = next((op for op in ops if op.role is Role.ANCHOR), ops[0])
        groups.append(
            OpGroup(name=name, ops=tuple(op.name for op in ops), type=lead.type, role=lead.role, choices=common)
        )
    return tuple(groups)
