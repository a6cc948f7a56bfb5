"""Property tests run without a deadline (the machine that runs them may be busy) and with 50 examples (the suite stays under a minute)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("neural_tune", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("neural_tune")
