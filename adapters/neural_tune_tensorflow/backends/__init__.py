"""What really runs a model."""
