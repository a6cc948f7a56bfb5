"""When a search ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from neural_tune.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """The budget of a search.

    Attributes:
        max_trials: Most candidates to try (the float baseline is not counted).
        timeout: Seconds for the search. 0 sets no time limit and stops at the first acceptable model that the strategy
            is content with; above 0 the search goes on improving the objective until the time or the trials are spent.
        max_passes: Most passes over the evaluation set, baseline included; None sets no limit.

    Raises:
        ConfigError: a field is out of range.
    """

    max_trials: int = 100
    timeout: float = 0.0
    max_passes: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if isinstance(self.max_trials, bool) or not isinstance(self.max_trials, int) or self.max_trials < 1:
            message = f"max_trials: found {self.max_trials!r}, expected an integer, 1 or more"
            raise ConfigError(message)
        if not (isinstance(self.timeout, int | float) and math.isfinite(self.timeout) and self.timeout >= 0):
            message = f"timeout: found {self.timeout!r}, expected seconds, 0 or more"
            raise ConfigError(message)
        if self.max_passes is not None and not self.max_passes > 0:
            message = f"max_passes: found {self.max_passes!r}, expected a number above 0"
            raise ConfigError(message)

    @property
    def at_first_acceptable(self) -> bool:
        """True when an acceptable model ends the search."""
        return self.timeout == 0
