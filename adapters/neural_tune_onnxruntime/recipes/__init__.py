"""Recipes: changes to weights that make a model easier to quantize and cost no evaluation.

| recipe | what it does | function |
|---|---|---|
| equalization | factors per channel between layers with weights | the same |
| smoothquant | factors per channel between a norm and the products behind it | the same |
| bias_correction | the mean error of rounded weights is put right in the bias | corrected where int8 |

Folding batch norms is no recipe here: `normalise` always does it. A recipe is a module with a NAME and two functions, `is_offered` (from the graph alone, cheap) and
`propose` (from the calibration inputs); `variants` applies the proposals, proves that the function stayed, and observes anew what changed.
"""
