"""Recipes of the pt2e backend: changes to constants of the exported graph that make it easier to quantize and cost no evaluation.

| recipe | what it does | function |
|---|---|---|
| equalization | factors per channel between layers with weights | the same |
| smoothquant | factors per channel between a norm and the linears behind it | the same |
| bias_correction | the mean error of rounded weights is put right in the bias | corrected where int8 |

Folding batch norms is no recipe here: `capture.normalise` always does it. The arithmetic (factors, their choice, the proof) is `neural_tune.numerics`; here are the edges of
the graph (`edges`), the look at the calibration inputs (`probe`), and the graphs that come out (`variants`).
"""
