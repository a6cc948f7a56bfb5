"""From a candidate to a graph of fused int8 ops: who carries codes, and the nodes that do it."""
