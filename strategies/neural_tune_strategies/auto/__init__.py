"""Strategy `auto`: the fastest accepted model in about one pass over the data beyond the float baseline and the winner's own.

Read it in this order; every module is pure and stands alone:

* `tensors`: which groups of ops share an activation tensor
* `ranking`: the findings of the probes as a model of the error that any set of float groups leaves
* `costs`: what a set of float groups costs, in milliseconds, bytes or ops
* `cut`: the exact minimum of error and cost together
* `front`: the ladder, points from the cheapest to the most accurate
* `search`: which rung of the ladder to try next
* `book`: what the history says about the candidates of one ladder
* `strategy`: the order of the steps
"""

from neural_tune_strategies.auto.strategy import Auto

__all__ = ["Auto"]
