"""The ways of quantizing a PyTorch module, one package or file each; see `neural_tune_pytorch.backend`."""
