"""What else an adapter offers besides the preferred precision, as single options that apply to many ops at once.

A group's choices are often a product (three observers times two weight granularities). `options_of` takes it apart again:
every choice is compared with the preferred one of its group, and a choice whose difference is the union of smaller
differences is left out. So the options of a model are counted by a sum, not by a product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neural_tune.space import OpGroup, TuningSpace
from neural_tune.values import Mode, OpConfig, QuantSpec

Difference = frozenset[tuple[str, object]]


@dataclass(frozen=True, slots=True)
class Option:
    """One deviation from the preferred precision, and the groups that offer it.

    Attributes:
        label: The deviation in words, such as "activation observer kl".
        configs: Group name -> the choice that differs from the preferred one by exactly this deviation.
        types: Op types of these groups, in execution order.
    """

    label: str
    configs: Mapping[str, OpConfig]
    types: tuple[str, ...]


def options_of(space: TuningSpace) -> tuple[Option, ...]:
    """Return the options of `space`, in the order in which the groups (first to last) and their choices name them."""
    configs: dict[Difference, dict[str, OpConfig]] = {}
    types: dict[Difference, dict[str, None]] = {}
    for group in space.groups:
        for difference, config in _single_differences(group).items():
            configs.setdefault(difference, {})[group.name] = config
            types.setdefault(difference, {})[group.type] = None
    return tuple(Option(_label(difference), groups, tuple(types[difference])) for difference, groups in configs.items())


def _single_differences(group: OpGroup) -> dict[Difference, OpConfig]:
    """Return the choices of `group` that are no combination of others, by their difference from the preferred one."""
    preferred = _features(group.choices[0])
    found: dict[Difference, OpConfig] = {}
    for config in group.choices[1:]:
        difference = _features(config) - preferred
        if difference and not config.is_float:
            found.setdefault(difference, config)
    return {difference: config for difference, config in found.items() if not _is_combination(difference, found)}


def _is_combination(difference: Difference, others: Mapping[Difference, OpConfig]) -> bool:
    smaller = [other for other in others if other < difference]
    return frozenset().union(*smaller) == difference


def _features(config: OpConfig) -> Difference:
    """Return the decisions in `config`; inputs and output are both activations and count as one decision."""
    quantized = tuple(name for name in ("activation", "weight", "output") if getattr(config, name) is not None)
    features: set[tuple[str, object]] = {("quantizes", quantized)}
    if config.mode is not Mode.STATIC:
        features.add(("mode", config.mode.value))
    for name, spec in (("activation", config.activation), ("weight", config.weight), ("activation", config.output)):
        if spec is not None:
            features |= _spec_features(name, spec)
    return frozenset(features)


def _spec_features(name: str, spec: QuantSpec) -> set[tuple[str, object]]:
    return {
        (f"{name} format", (spec.dtype.value, "sym" if spec.symmetric else "asym")),
        (f"{name} granularity", (spec.granularity.value, spec.axis, spec.group_size)),
        (f"{name} observer", (spec.observer.value, spec.percentile)),
        (f"{name} reduce_range", spec.reduce_range),
    }


def _label(difference: Difference) -> str:
    spoken = sorted((name, value) for name, value in difference if name != "quantizes") or sorted(difference, key=str)
    return ", ".join(f"{name} {_words(value)}" for name, value in spoken)


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value if item is not None)
    return str(value)
