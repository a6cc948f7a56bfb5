"""From a candidate to a graph: `regions` decides which tensors carry codes, `qdq` writes the nodes, `outcomes` explains."""
