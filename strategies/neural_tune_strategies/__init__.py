"""First-party search strategies: one module each; they import `neural_tune` only."""
