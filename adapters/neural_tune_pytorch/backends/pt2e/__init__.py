"""PT2E: torch.export, Q/DQ graphs of our own, Inductor with freezing."""
