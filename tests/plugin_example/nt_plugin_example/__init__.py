"""An adapter and a strategy for neural_tune from outside."""
