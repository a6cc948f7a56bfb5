"""Options that a person wrote by hand: which keys are missing, which are unknown, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from neural_tune.errors import ConfigError


def close_to(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" for the most similar of the known words, or an empty string."""
    folded = {item.lower(): item for item in known}
    close = difflib.get_close_matches(str(word).lower(), folded, n=1, cutoff=0.6)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


def unknown_among(options: Iterable[str], known: Iterable[str]) -> str:
    """Return a sentence about the options that nobody knows, with what was probably meant; "" when all are known."""
    names = tuple(known)
    strange = [f"{name!r}{close_to(name, names)}" for name in options if name not in names]
    return f"options: found {', '.join(strange)}, expected some of {', '.join(names) or 'none'}" if strange else ""


def only_known(options: Mapping[str, Any], *, needed: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse missing and unknown keys.

    Raises:
        ConfigError: one line per missing or unknown key.
    """
    errors = [f"{name}: missing" for name in needed if name not in options]
    errors += [
        f"{name}: unknown key{close_to(name, known)}; expected {', '.join(known)}"
        for name in options
        if name not in known
    ]
    if errors:
        raise ConfigError("\n".join(errors))
