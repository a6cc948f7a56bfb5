"""`auto`, trial by trial and pass by pass, on synthetic models whose true errors are known."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from neural_tune import plugins
from neural_tune.errors import ConfigError
from neural_tune.space import TuningSpace
from neural_tune.testing import begin
from neural_tune.testing.script import answer
from neural_tune.testing.spaces import INT8, op, space_of
from neural_tune.values import (
    FLOAT,
    AccuracyCriterion,
    Capability,
    FrozenMap,
    Insight,
    LatencyProfile,
    OpCapability,
    Origin,
    ProbeRequest,
    Role,
    Trial,
    TrialResult,
    TrialStatus,
    count_passes,
)
from neural_tune_strategies.auto import Auto

REJECTION = 0.12  # passes of an exact early rejection


def chain(size, recipes=()):
    """Return the space of `size` convolutions in a row; c000 reads x and writes t000, which c001 reads ..."""
    ops = tuple(
        OpCapability(
            name=f"c{place:03d}",
            type="Conv",
            role=Role.ANCHOR,
            choices=(INT8, FLOAT),
            inputs=(f"t{place - 1:03d}",) if place else ("x",),
            outputs=(f"t{place:03d}",),
        )
        for place in range(size)
    )
    return TuningSpace.of(
        Capability(framework="s", runtime_version="1", instruction_set="n", ops=ops, inputs=("x",), recipes=recipes)
    )


@dataclass
class World:
    """What is true: harm per op, harm per tensor while any op around it is int8, and what is tolerated."""

    space: TuningSpace
    own: dict
    tensors: list = field(default_factory=list)  # (ops around it, harm)
    tolerated: float = 1.0
    broken: frozenset = frozenset()  # ops that cannot be built in int8

    def error(self, candidate):
        inside = set(candidate.ops)
        shared = sum(harm for around, harm in self.tensors if inside & set(around))
        return sum(harm for name, harm in self.own.items() if name in inside) + shared

    def one_in(self):
        return {
            name: harm + sum(bad for around, bad in self.tensors if name in around) for name, harm in self.own.items()
        }

    def insight(self, noise=0.0, seed=0, **more):
        draw = random.Random(seed)
        divergence = {name: harm * draw.lognormvariate(0.0, noise) for name, harm in self.one_in().items()}
        return Insight(divergence=FrozenMap(divergence), **more)

    def result(self, trial, *, lower=False, whole=False):
        error = self.error(trial.candidate)
        if self.broken & set(trial.candidate.ops):
            return TrialResult(trial=trial, status=TrialStatus.FAILED, error="AdapterError: scripted")
        # The metric loses 0.01 at the tolerated error; beyond it only the sign is known.
        is_accepted = error <= self.tolerated
        loss = 0.01 * error / self.tolerated
        metric = FrozenMap({"accuracy": 1.0 + loss if lower else 1.0 - loss})
        if is_accepted or whole:
            return TrialResult(
                trial=trial, status=TrialStatus.COMPLETE, metrics=metric, is_accepted=is_accepted, passes=1.0
            )
        bound = FrozenMap({"accuracy": 1.0101 if lower else 0.9899})
        return TrialResult(trial=trial, status=TrialStatus.REJECTED, bounds=bound, passes=REJECTION)


def start(insight=None, *, lower=False):
    criterion = AccuracyCriterion(tolerable_loss=0.01, higher_is_better=not lower)
    return replace(begin(1.0, criterion), insight=insight)


def search(world, insight, strategy=None, *, workers=1, timeout=False, history=None, max_trials=400, **how):
    """Run the engine's loop without an engine; the oldest pending trial ends first."""
    history = history or start(insight, lower=how.get("lower", False))
    strategy = strategy or Auto()
    while len(history.results) < max_trials and (timeout or not strategy.is_content(world.space, history)):
        while len(history.pending) < workers:
            proposal = strategy.propose(world.space, history)
            if proposal is None:
                break
            if isinstance(proposal, ProbeRequest):
                history = answer(history, proposal)
                continue
            assert world.space.contains(proposal.candidate)
            assert not proposal.candidate.is_float
            assert proposal.candidate.digest not in history.seen
            assert proposal.reason
            trial = Trial(
                number=history.next_number, candidate=proposal.candidate, origin=Origin("auto", proposal.reason)
            )
            history = history.with_pending(trial)
        if not history.pending:
            break
        history = history.with_result(world.result(history.pending[0], **how))
    return history


def floats(world, result):
    return {group.name for group in world.space.groups if group.name not in result.trial.candidate.ops}


def shown(world, history):
    return [" ".join(sorted(floats(world, result))) for result in history.results]


def passes(history):
    return count_passes(history.baseline, history.results)


def best(world, history):
    return min((floats(world, result) for result in history.results if result.is_accepted), key=len)


def planted(size, bad, *, seed=0, harm=1.0, tail=0.01):
    """Return a world of small harms with `bad` ops of large ones; it tolerates the small ones, and half a bad one."""
    draw = random.Random(seed)
    space = chain(size)
    names = [group.name for group in space.groups]
    own = {name: tail * draw.lognormvariate(0.0, 0.5) for name in names}
    culprits = draw.sample(names[::3], bad)  # no two next to each other
    for name in culprits:
        own[name] = harm * (0.5 + draw.lognormvariate(0.0, 0.5))
    tolerated = sum(harm for name, harm in own.items() if name not in culprits) * 1.2
    return World(space, own, tolerated=tolerated), set(culprits)


# The common case


def test_full_int8_that_is_accepted_takes_two_passes_in_all():
    world, _ = planted(20, 0)
    history = search(world, world.insight())
    assert shown(world, history) == [""]
    assert passes(history) == 2.0
    assert Auto().propose(world.space, history) is None


def test_one_bad_op_takes_one_rejection_and_one_acceptance():
    world, culprits = planted(20, 1)
    history = search(world, world.insight())
    assert shown(world, history) == ["", *culprits]
    assert passes(history) == pytest.approx(2.12)


def test_rungs_are_climbed_from_below_in_the_order_of_the_divergences():
    space = chain(8)
    own = {f"c{place:03d}": harm for place, harm in enumerate((0.01, 4.0, 0.01, 2.0, 0.01, 1.0, 0.01, 0.01))}
    world = World(space, own, tolerated=0.1)
    assert shown(world, search(world, world.insight())) == ["", "c001", "c001 c003", "c001 c003 c005"]


@pytest.mark.parametrize(("size", "budget"), [(20, 3.0), (60, 3.0), (150, 4.0)])
@pytest.mark.parametrize("bad", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_passes_stay_within_the_budget_and_hardly_an_op_too_many_is_float(size, budget, bad, noise):
    if bad > size // 3:
        return
    surplus = []
    for seed in range(6):
        world, culprits = planted(size, bad, seed=seed)
        history = search(world, world.insight(noise, seed))
        assert passes(history) <= budget
        surplus.append(len(best(world, history)) - len(culprits))
        assert sum(result.is_accepted for result in history.results) <= (2 if size == 150 else 1)
    assert sum(surplus) / len(surplus) <= 1.0
    assert max(surplus) <= 3


@pytest.mark.parametrize("size", [20, 60, 150])
def test_a_noisy_ranking_costs_floats_but_converges_within_the_budget(size):
    for seed in range(5):
        world, culprits = planted(size, 4, seed=seed)
        history = search(world, world.insight(1.0, seed))
        assert passes(history) <= (4.0 if size == 150 else 3.0)
        assert culprits <= best(world, history)
        assert len(best(world, history)) <= len(culprits) + 8


def test_an_inverted_ranking_needs_many_more_trials():
    for seed in range(4):
        world, _ = planted(60, 3, seed=seed)
        upright = world.insight()
        worst = max(upright.divergence.values())
        inverted = replace(
            upright, divergence=FrozenMap({n: worst / (d + 1e-3) for n, d in upright.divergence.items()})
        )
        good, bad = search(world, upright), search(world, inverted)
        assert passes(good) <= 2.6
        assert len(bad.results) > 3 * len(good.results)
        assert passes(bad) > passes(good) + 1.0
        assert bad.accepted, "starting over above what fails alone finds the way out"


# Edges: a bad tensor hurts through its producer and its consumers


def test_a_bad_tensor_is_one_move_that_takes_both_ends():
    space = chain(12)
    world = World(space, dict.fromkeys((g.name for g in space.groups), 0.01), [(("c004", "c005"), 5.0)], tolerated=0.2)
    assert shown(world, search(world, world.insight())) == ["", "c004 c005"]


@pytest.mark.parametrize(("size", "budget"), [(20, 3.0), (60, 3.0), (150, 4.0)])
@pytest.mark.parametrize("edges", [1, 3, 6])
def test_planted_edges_stay_within_the_budget(size, budget, edges):
    if 2 * edges > size // 2:
        return
    for seed in range(4):
        draw = random.Random(seed)
        space = chain(size)
        own = {group.name: 0.01 * draw.lognormvariate(0.0, 0.5) for group in space.groups}
        at = draw.sample(range(0, size - 1, 3), edges)
        tail = sum(own.values())
        tensors = [((f"c{p:03d}", f"c{p + 1:03d}"), tail * (0.3 + draw.lognormvariate(0.0, 0.7))) for p in at]
        world = World(space, own, tensors, tolerated=tail * 1.2)
        history = search(world, world.insight(0.1, seed))
        assert passes(history) <= budget
        needed = {name for around, _ in tensors for name in around}
        assert needed <= best(world, history)
        assert len(best(world, history)) <= len(needed) + 2


def test_a_single_end_of_a_bad_edge_is_never_tried_on_the_way():
    space = chain(30)
    world = World(
        space, dict.fromkeys((g.name for g in space.groups), 0.01), [(("c004", "c005"), 5.0), (("c020", "c021"), 3.0)],
        tolerated=0.4,
    )  # fmt: skip
    for result in search(world, world.insight()).results:
        found = floats(world, result)
        assert len(found & {"c004", "c005"}) != 1
        assert len(found & {"c020", "c021"}) != 1


def test_all_readers_of_a_bad_tensor_move_together():
    ops = [
        OpCapability(name=name, type="Conv", role=Role.ANCHOR, choices=(INT8, FLOAT), inputs=inputs, outputs=outputs)
        for name, inputs, outputs in [
            ("a", ("x",), ("t1",)), ("b", ("t1",), ("t2",)), ("q", ("t2",), ("t3",)), ("k", ("t2",), ("t4",)), ("v", ("t2",), ("t5",)),
            ("o", ("t3", "t4", "t5"), ("t6",)), ("d", ("t6",), ("t7",)), ("e", ("t7",), ("t8",)), ("f", ("t8",), ("t9",)), ("g", ("t9",), ("y",)),
        ]
    ]  # fmt: skip
    space = space_of(*ops)
    world = World(space, {item.name: 0.01 for item in ops}, [(("b", "q", "k", "v"), 4.0)], tolerated=0.2)
    assert shown(world, search(world, world.insight())) == ["", "b k q v"]


# Latency


def profile(space, gains, borders=0.0):
    names = [group.name for group in space.groups]
    return LatencyProfile(
        float_ms=FrozenMap(dict.fromkeys(names, 2.0)),
        int8_ms=FrozenMap({name: 2.0 - gains.get(name, 1.0) for name in names}),
        border_ms=FrozenMap({f"t{place:03d}": borders for place in range(len(names))}),
    )


def test_an_op_that_does_not_pay_is_float_from_the_start():
    world, _ = planted(20, 0)
    history = search(world, world.insight(latency=profile(world.space, {"c007": -0.5})))
    assert shown(world, history) == ["c007"]
    assert "profile" in history.results[0].trial.origin.reason


def test_an_op_that_does_not_pay_stays_int8_where_borders_cost_more():
    world, _ = planted(20, 0)
    history = search(world, world.insight(latency=profile(world.space, {"c007": -0.5}, borders=0.4)))
    assert shown(world, history) == [""]


def test_what_nothing_gains_is_never_proposed_as_all_float():
    world, culprits = planted(20, 1)
    gains = dict.fromkeys((group.name for group in world.space.groups), -1.0)
    history = search(world, world.insight(latency=profile(world.space, gains)))
    assert shown(world, history) == ["", *culprits]


def test_of_equal_errors_the_one_that_costs_least_falls_back():
    space = chain(20)
    own = dict.fromkeys((group.name for group in space.groups), 0.01) | {"c003": 1.0, "c010": 1.0, "c015": 1.0}
    world = World(space, own, tolerated=2.5)
    gains = {"c003": 1.5, "c010": 0.25, "c015": 1.0}
    history = search(world, world.insight(latency=profile(space, gains)))
    assert shown(world, history) == ["", "c010"]


def test_the_profile_is_ignored_when_size_is_the_objective():
    from neural_tune.values import Objective, Objectives

    world, _ = planted(20, 0)
    insight = world.insight(latency=profile(world.space, {"c007": -0.5}))
    history = replace(start(insight), objectives=Objectives((Objective("size"),)))
    assert shown(world, search(world, insight, history=history)) == [""]


# Recipes


class WithRecipes(World):
    def error(self, candidate):
        return super().error(candidate) * (0.1 if "equalize" in candidate.recipes else 1.0)


def recipe_world(bad=2):
    plain, culprits = planted(20, bad)
    return WithRecipes(chain(20, recipes=("equalize", "smooth")), plain.own, tolerated=plain.tolerated), culprits


def test_every_candidate_carries_the_recipes_that_help():
    world, culprits = recipe_world(4)
    world.tolerated /= 10
    insight = world.insight(recipes=("equalize",), divergence_with_recipes=FrozenMap(world.one_in()))
    history = search(world, insight)
    assert all(result.trial.candidate.recipes == ("equalize",) for result in history.results)
    assert "equalize" in history.results[0].trial.origin.reason
    assert culprits <= best(world, history)


def test_a_recipe_can_make_full_int8_acceptable():
    world, _ = recipe_world(1)
    world.tolerated = 0.11 * sum(world.own.values())
    history = search(world, world.insight(recipes=("equalize",)))
    assert shown(world, history) == [""]
    assert passes(history) == 2.0


def test_fallback_only_leaves_recipes_alone():
    world, culprits = recipe_world(1)
    strategy = Auto(fallback_only=True)
    assert strategy.wants == {"latency"}
    assert Auto().wants == {"latency", "recipes"}
    history = search(world, world.insight(recipes=("equalize",)), strategy)
    assert [result.trial.candidate.recipes for result in history.results] == [(), ()]
    assert best(world, history) == culprits


def test_without_success_the_recipes_are_dropped_at_the_end():
    world, _ = planted(6, 0)
    spoiled = World(chain(6, recipes=("bad",)), world.own, tolerated=world.tolerated)
    spoiled.error = lambda candidate: 100.0 if candidate.recipes else World.error(spoiled, candidate)
    history = search(spoiled, spoiled.insight(recipes=("bad",)))
    accepted = [result for result in history.results if result.is_accepted]
    assert [result.trial.candidate.recipes for result in accepted] == [()]
    assert history.results[-1] is accepted[0]
    assert all(result.trial.candidate.recipes == ("bad",) for result in history.results[:-1])


def test_recipes_that_the_user_forbade_are_not_used():
    world, _ = planted(20, 0)
    history = search(world, world.insight(recipes=("equalize",)))  # not on offer in this space
    assert history.results[0].trial.candidate.recipes == ()


# Without insight, failures, directions, opaque evaluations


@pytest.mark.parametrize("insight", [None, Insight(), Insight(divergence=FrozenMap({"c001": float("nan")}))])
@pytest.mark.parametrize("culprit", ["c000", "c007", "c019"])
def test_without_divergences_a_bad_op_is_found_and_found_alone(insight, culprit):
    space = chain(20)
    own = dict.fromkeys((group.name for group in space.groups), 0.01) | {culprit: 1.0}
    world = World(space, own, tolerated=0.5)
    history = search(world, insight)
    assert best(world, history) == {culprit}
    assert passes(history) < 9.0


def test_lower_is_better_gives_the_same_trials():
    world, _ = planted(60, 5, seed=3)
    insight = world.insight(0.5)
    assert shown(world, search(world, insight)) == shown(world, search(world, insight, lower=True))


def test_a_group_that_cannot_be_built_is_left_in_float():
    world, culprits = planted(20, 1)
    broken = "c001"
    world.broken = frozenset({broken})
    insight = world.insight()
    insight = replace(insight, divergence=FrozenMap({**insight.divergence, broken: float("inf")}))
    history = search(world, insight)
    assert history.results[0].status is TrialStatus.FAILED
    assert best(world, history) == {broken, *culprits}


def test_failures_rule_out_nothing_but_themselves():
    """Everything fails: the search ends by itself, within its forecast."""
    world, _ = planted(20, 1)
    world.broken = frozenset(world.space.op_names)
    history = search(world, world.insight())
    assert not history.accepted
    assert 0 < len(history.results) <= Auto().forecast(world.space).worst
    assert Auto().propose(world.space, history) is None


def test_an_opaque_metric_sets_the_length_of_the_step():
    for seed in range(5):
        world, culprits = planted(60, 6, seed=seed)
        history = search(world, world.insight(), whole=True)
        assert len(history.results) <= 4
        assert culprits <= best(world, history)
        assert len(best(world, history)) <= len(culprits) + 6


def test_when_nothing_can_be_accepted_the_search_ends():
    world, _ = planted(20, 2)
    world.tolerated = -1.0
    history = search(world, world.insight())
    assert not history.accepted
    assert not Auto().is_content(world.space, history)
    assert len(history.results) <= Auto().forecast(world.space).worst


# Improving on


def test_with_time_left_single_ops_are_quantized_again_until_none_is_accepted():
    world, culprits = planted(60, 6, seed=1)
    history = search(world, world.insight(1.0, 5), timeout=True)
    assert Auto().propose(world.space, history) is None
    found = best(world, history)
    for name in found:
        assert world.error(world.space.preferred().with_ops(dict.fromkeys(found - {name}, FLOAT))) > world.tolerated
    assert culprits <= found | culprits
    assert len(history.results) <= Auto().forecast(world.space).worst


def test_max_prunes_replaces_the_budget():
    world, _ = planted(60, 6, seed=1)
    insight = world.insight(1.0, 5)
    first = len(search(world, insight, Auto(max_prunes=0)).results)
    counts = [len(search(world, insight, Auto(max_prunes=prunes)).results) - first for prunes in (0, 1, 3)]
    assert counts == [0, 1, 3]


def test_what_a_rejected_candidate_with_more_floats_rules_out_is_not_tried():
    world, _ = planted(30, 4, seed=2)
    history = search(world, world.insight(0.8, 1), timeout=True)
    rejected = []
    for result in history.results:
        assert not any(floats(world, result) <= other for other in rejected)
        if not result.is_accepted:
            rejected.append(floats(world, result))


def test_prunes_come_in_the_order_of_harm_per_gain():
    space = chain(20)
    own = dict.fromkeys((g.name for g in space.groups), 0.01) | {"c001": 3.0, "c005": 2.0, "c009": 1.0}
    world = World(space, own, tolerated=0.3)
    misled = Insight(divergence=FrozenMap(own | {"c001": 3.0, "c003": 2.5, "c013": 2.2}))
    history = search(world, misled, timeout=True)
    accepted = [floats(world, result) for result in history.results if result.is_accepted]
    assert accepted[0] == {"c001", "c003", "c005", "c009", "c013"}
    assert accepted[-1] == {"c001", "c005", "c009"}


# Pure function of the history


@pytest.mark.parametrize("timeout", [False, True])
def test_any_prefix_is_continued_in_the_same_way(timeout):
    world, _ = planted(60, 5, seed=4)
    insight = world.insight(0.7, 2)
    whole = search(world, insight, timeout=timeout)
    assert len(whole.results) >= 4
    for cut in range(len(whole.results)):
        prefix = replace(whole, results=whole.results[:cut])
        assert search(world, insight, Auto(), timeout=timeout, history=prefix) == whole


def worker_search(world, insight, workers, order):
    """Run `workers` trials at a time, which end in the order that `order` draws; return the history and the number of rounds."""
    strategy, history, rounds = Auto(), start(insight), 0
    while not strategy.is_content(world.space, history):
        while len(history.pending) < workers:
            proposal = strategy.propose(world.space, history)
            if proposal is None:
                break
            if isinstance(proposal, ProbeRequest):
                history = answer(history, proposal)
                continue
            assert proposal.candidate.digest not in history.seen
            trial = Trial(number=history.next_number, candidate=proposal.candidate, origin=Origin("a", proposal.reason))
            history = history.with_pending(trial)
        if not history.pending:
            break
        rounds += 1
        for trial in order.sample(history.pending, len(history.pending)):
            history = history.with_result(world.result(trial))
    return history, rounds


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("seed", [2, 4, 7])
def test_many_workers_run_the_trials_of_one_in_its_order_and_others_ahead(workers, seed):
    world, _ = planted(60, 5, seed=seed)
    insight = world.insight(0.7, 2)
    alone = [floats(world, result) for result in search(world, insight).results]
    history, rounds = worker_search(world, insight, workers, random.Random(seed))
    numbered = sorted(history.results, key=lambda result: result.trial.number)
    together = [floats(world, result) for result in numbered]
    assert [item for item in together if item in alone] == alone
    assert rounds < len(alone)
    assert all("run ahead" in result.trial.origin.reason for result in numbered if floats(world, result) not in alone)
    assert not any("run ahead" in result.trial.origin.reason for result in search(world, insight).results)
    again, _ = worker_search(world, insight, workers, random.Random(seed))
    assert again == history


def test_results_that_were_run_ahead_in_vain_do_not_move_the_search():
    world, _ = planted(60, 5, seed=4)
    insight = world.insight(0.7, 2)
    alone = search(world, insight)
    stray = Auto().propose(world.space, start(insight, lower=False))
    assert stray is not None
    everything = {group.name: group.choices[0] for group in world.space.groups[::2]}
    foreign = Trial(number=1, candidate=world.space.candidate(everything), origin=Origin("somebody"))
    moved = search(world, insight, history=start(insight).with_result(world.result(foreign)))
    assert [floats(world, r) for r in moved.results[1:]] == [floats(world, r) for r in alone.results]


# Probes


def test_a_ranking_is_asked_for_only_when_the_cheapest_candidate_was_rejected():
    world, culprits = planted(20, 1)
    strategy, history, asked = Auto(), start(Insight(probes=("recipes", "latency"))), []
    for _ in range(10):
        proposal = strategy.propose(world.space, history)
        if isinstance(proposal, ProbeRequest):
            asked.append((proposal.probes, len(history.results)))
            history = answer(history, proposal, lambda *_: world.insight())
            continue
        if proposal is None or strategy.is_content(world.space, history):
            break
        trial = Trial(number=history.next_number, candidate=proposal.candidate, origin=Origin("auto"))
        history = history.with_result(world.result(trial))
    assert asked == [(("divergence",), 1)]
    assert shown(world, history) == ["", *culprits]
    easy, _ = planted(20, 0)
    first = Auto().propose(easy.space, start(Insight()))
    assert not isinstance(first, ProbeRequest)
    accepted = start(Insight()).with_result(easy.result(Trial(number=1, candidate=first.candidate, origin=Origin("a"))))
    assert Auto().is_content(easy.space, accepted)
    assert Auto().propose(easy.space, accepted) is None


def test_the_ranking_with_recipes_is_asked_for_first_and_the_plain_one_only_after_it():
    world, _ = planted(6, 2)
    space = chain(6, recipes=("smooth",))
    world = World(space, world.own, tolerated=1e-9)  # nothing is ever accepted
    strategy, history, asked = Auto(), start(Insight(recipes=("smooth",), probes=("recipes", "latency"))), []
    while (proposal := strategy.propose(space, history)) is not None:
        if isinstance(proposal, ProbeRequest):
            asked += proposal.probes
            history = answer(history, proposal)
            continue
        trial = Trial(number=history.next_number, candidate=proposal.candidate, origin=Origin("auto"))
        history = history.with_result(world.result(trial))
    assert asked == ["divergence_with_recipes", "divergence"]


# Units and left-over time


def test_a_ladder_that_counts_groups_names_no_milliseconds():
    world, _ = planted(8, 2)
    dear = {group.name: -1.0 for group in world.space.groups}  # int8 pays nowhere
    timed = profile(world.space, dear)
    history = search(world, world.insight(latency=timed))
    assert shown(world, history)[0] == ""
    assert len(history.results) > 1
    assert not any(" ms" in result.trial.origin.reason for result in history.results)


def test_left_over_time_exchanges_a_float_group_for_a_cheaper_one():
    space = chain(4)
    own = dict.fromkeys(("c000", "c001", "c002", "c003"), 0.5)
    world = World(space, own, tolerated=1.6)  # any one in float will do
    gains = {"c000": 0.1, "c001": 0.2, "c002": 0.4, "c003": 0.8}
    base = {group.name: 1.0 for group in space.groups}
    timed = LatencyProfile(float_ms=FrozenMap(base), int8_ms=FrozenMap({n: 1.0 - gain for n, gain in gains.items()}))
    wrong = replace(world.insight(latency=timed), divergence=FrozenMap({**own, "c003": 9.0}))
    content = search(world, wrong)
    assert best(world, content) == {"c003"}
    spent = search(world, wrong, timeout=True)
    assert {"c003"} not in [floats(world, result) for result in spent.results[-1:]]
    assert any("in float for it" in result.trial.origin.reason for result in spent.results)
    assert len(spent.results) <= Auto().forecast(space).worst


def test_a_proposal_on_150_ops_takes_well_under_a_second_and_none_is_slower_later():
    import time

    world, _ = planted(150, 8)
    strategy, history = Auto(), start(world.insight(latency=profile(chain(150), {}, borders=0.1)))
    begun = time.process_time()
    strategy.propose(world.space, history)
    assert time.process_time() - begun < 3.0
    begun = time.process_time()
    for _ in range(10):
        strategy.propose(world.space, history)
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize(
    "options", [{"max_prunes": -1}, {"max_prunes": 1.5}, {"max_prunes": True}, {"fallback_only": "yes"}, {"prunes": 1}]
)
def test_wrong_options_are_config_errors_that_name_them(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        plugins.strategy("auto", 0, **options)


def test_forecast():
    assert Auto().forecast(space_of(op("fc"))).worst == 1
    assert Auto().forecast(chain(60)).expected == 5
    assert Auto().forecast(chain(60)).worst == 6 * 60
    assert Auto().forecast(chain(60, recipes=("r",))).worst == 2 * 6 * 60
    assert Auto(fallback_only=True).forecast(chain(60, recipes=("r",))).worst == 6 * 60
