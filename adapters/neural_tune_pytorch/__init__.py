"""The PyTorch adapter of neural_tune: int8 through PT2E and Inductor, FX and eager mode."""
