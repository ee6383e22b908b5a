# SPDX-License-Identifier: Apache-2.0
"""The evidence in an observation, weighed once; findings and report are drawn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detector.analysis.anonymity import Alone, alone
from detector.analysis.columns import Columns, Mask, columns_of
from detector.analysis.consistency import (
    Contrast,
    Population,
    consistency_of,
    pair_contrast,
    population_of,
    trial_contrast,
)
from detector.analysis.controls import (
    ENOUGH_PERSONS,
    Controls,
    Lasts,
    controls_of,
    returns_last,
    sign_evidence,
    votes_last,
)
from detector.analysis.evalues import flag, pinned_evidence, trial_evidence
from detector.analysis.exclusive import ANONYMITY_FLOOR, Exclusive, exclusive_of
from detector.analysis.numerics import Floats, log_mean_tail
from detector.analysis.observation import Observation, Trials
from detector.analysis.panes import drifts, jumped
from detector.analysis.predictor_fit import Explanation, explanations
from detector.analysis.sessions import Sessions, sessions_of
from detector.analysis.units import UnitFinding, units_of
from detector.base.flows import FLOW_CLASSES, FlowClass
from detector.base.verdicts import Verdict
from detector.predictors import KERNEL_DESTINATION

LOG_LEVEL = float(np.log(0.002))  # of each test on the whole relay; there are five, so 1 % together
LEAST_EFFECT = 0.02  # k below this is no finding by itself, however sure; nor is it harmless
SIGMAS = 3.0
_VOTES_LEAN = 2.0  # of log E
BEST_LEFT_OUT = 2  # peers that may have chosen their flows, left out of every test on the whole relay


@dataclass(frozen=True, slots=True)
class ClassEvidence:
    """What the votes of one class of flows say.

    Attributes:
        flow_class: which.
        share: of all votes.
        contrast: over its votes.
        keeps: the peers together keep their exits in it, by the contrast and the controls.
        lasts: whether for long.
    """

    flow_class: FlowClass
    share: float
    contrast: Contrast
    keeps: bool
    lasts: Lasts


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the findings are drawn from; masks and columns have shape (P,)."""

    columns: Columns
    population: Population
    consistency: Floats
    any: Contrast
    trimmed: Contrast
    same_destination: Contrast
    same_port: Contrast
    log_e: Floats
    pinned: Mask
    relay_keeps: bool
    votes_last: Lasts
    linked: Mask
    linked_holds: bool
    returns_last: Lasts
    classes: tuple[ClassEvidence, ...]
    sessions: Sessions
    explanations: list[Explanation]
    units: UnitFinding | None
    lonely: Alone
    exclusive: Exclusive
    repeats: Floats
    log_repeats_possible: Floats
    controls: Controls
    drift: bool
    jump: float | None
    has_panes: bool

    @property
    def enough(self) -> int:
        """Persons that make a finding about the relay: three, or all of two."""
        return enough_persons(int(np.count_nonzero(self.columns.judged)))


def enough_persons(judged: int) -> int:
    """How many persons make a finding: one or two may have chosen their flows."""
    return min(ENOUGH_PERSONS, max(judged, 2))


def weigh(observation: Observation, floor: int = ANONYMITY_FLOOR) -> Evidence:
    """The evidence in an observation."""
    columns = columns_of(observation)
    consistency = consistency_of(columns, columns.votes, columns.peer_votes)
    population = population_of(columns, consistency)
    controls = controls_of(observation, columns, population)
    judged = int(np.count_nonzero(columns.judged))
    log_e, classes = _vote_evidence(observation, columns, population, controls)
    pinned = _named(controls, flag(log_e, judged), log_e)
    tried, true = _counts(observation.same_destination, columns)
    chance = _repeat_chance(columns, population)
    if not _more_than_votes(columns, population, consistency, (tried, true), pinned):
        log_e = _with_returns(controls, log_e, (tried, true, chance))
        pinned = _named(controls, flag(log_e, judged), log_e)
    together = pair_contrast(columns, population, consistency, columns.peer_votes, columns.judged)
    trimmed = _trimmed(columns, population, consistency, log_e)
    keeps = _sure(trimmed) and controls.vote_evidence(columns.judged)
    # Who is named was chosen for agreeing with itself, over long lags too; where all do, all are asked.
    named = np.count_nonzero(pinned) >= enough_persons(judged) and not keeps
    last, _ = votes_last(controls, observation, pinned if named else columns.judged, None)
    linked = _linked(observation, controls, (tried, true, chance)) & ~pinned
    if not controls.return_evidence(linked):
        linked = np.zeros_like(linked)
    ports = _counts(observation.same_port, columns)
    lonely = alone(columns, columns.judged & (pinned | (consistency == 1)))
    doubtful = pinned if pinned.any() else columns.judged
    explained = explanations(observation, columns, pinned)
    drift = controls.drift()
    moving = drift or (observation.panes is not None and drifts(observation.panes))
    # Agreement that is not the peers' own is somebody's: a clock, a page; then larger units agree as well.
    others = together.log_p <= LOG_LEVEL and not (keeps or pinned.any())
    units = None if moving or others else units_of(observation, columns, LOG_LEVEL)
    told = lonely.log_p <= LOG_LEVEL or (observation.exclusive_map and lonely.count > 0)
    link = _returns_link(columns, population, (tried, true), linked, pinned, controls)
    everywhere = keeps or bool(pinned.any()) or any(one.keeps for one in classes)
    linked_who = linked if linked.any() else columns.narrow & ~pinned
    return Evidence(
        columns=columns,
        population=population,
        consistency=consistency,
        any=together,
        trimmed=trimmed,
        same_destination=trial_contrast(columns, population, tried, true, columns.narrow),
        same_port=trial_contrast(columns, population, *ports, columns.narrow),
        log_e=log_e,
        pinned=pinned,
        relay_keeps=keeps or any(one.keeps for one in classes),
        votes_last=_by_rule(
            observation, explained, Verdict.PINNED, _of_classes(last, classes, keeps, pinned)
        ),
        linked=linked,
        linked_holds=link
        and (not everywhere or _more_than_votes(columns, population, consistency, (tried, true), pinned)),
        returns_last=_by_rule(
            observation, explained, Verdict.DESTINATION_LINKED, returns_last(controls, linked_who)
        ),
        classes=classes,
        sessions=sessions_of(columns, population, doubtful),
        explanations=explained,
        units=units,
        lonely=lonely,
        exclusive=exclusive_of(observation, columns, lonely if told else None, units, floor),
        repeats=np.divide(true, tried, out=np.full(columns.peers, np.nan), where=tried > 0),
        log_repeats_possible=trial_evidence(tried, tried, chance),
        controls=controls,
        drift=drift,
        jump=None if observation.panes is None else jumped(observation.panes),
        has_panes=observation.panes is not None,
    )


def _vote_evidence(
    observation: Observation, columns: Columns, population: Population, controls: Controls
) -> tuple[Floats, tuple[ClassEvidence, ...]]:
    """``log E`` that each peer keeps an exit, in all of its votes or in a class of them, and the classes.

    The mean of e-values is one; a class in which a peer is not judged says nothing, E = 1.
    """
    whole = pinned_evidence(columns, population)
    classes = list(_classes(observation, columns))
    if len(classes) < 2:
        return whole, ()
    parts, found = [whole], []
    for flow_class, own in classes:
        consistency = consistency_of(own, own.votes, own.peer_votes)
        people = population_of(own, consistency)
        log_e = pinned_evidence(own, people)
        parts.append(log_e)
        contrast = _trimmed(own, people, consistency, log_e)
        keeps = _sure(contrast) and controls.vote_evidence(own.judged, flow_class)
        last = votes_last(controls, observation, own.judged, flow_class)[0] if keeps else Lasts.OPEN
        share = float(own.peer_votes.sum() / max(columns.peer_votes.sum(), 1.0))
        found.append(ClassEvidence(flow_class, share, contrast, keeps, last))
    stacked = np.stack([np.where(np.isfinite(one), one, 0.0) for one in parts])
    log_e = np.logaddexp.reduce(stacked, axis=0) - np.log(len(stacked))
    judged = np.any([np.isfinite(one) for one in parts], axis=0)
    return np.where(judged, log_e, -np.inf), tuple(found)


def _classes(observation: Observation, columns: Columns) -> Iterator[tuple[FlowClass, Columns]]:
    """The columns of each class of flows that has votes."""
    if observation.class_votes is None:
        return
    votes = np.asarray(observation.class_votes)[columns.rows].astype(np.float64)
    for flow_class in FLOW_CLASSES:
        if votes[:, flow_class].any():
            yield flow_class, columns.with_votes(votes[:, flow_class])


def _named(controls: Controls, flagged: Mask, log_e: Floats) -> Mask:
    """Those of the flagged whom the controls allow to be named: all, or those with controls of their own."""
    if controls.votes is None or not flagged.any():
        return flagged
    if np.count_nonzero(flagged) >= ENOUGH_PERSONS and controls.vote_evidence(flagged):
        return flagged
    _, _, mine, other = controls.votes.sum(axis=(2, 3))
    alone = sign_evidence(mine, other, controls.even)
    return flagged & flag(
        np.where(flagged, np.minimum(alone, log_e), -np.inf), int(np.count_nonzero(flagged))
    )


def _trimmed(columns: Columns, population: Population, consistency: Floats, log_e: Floats) -> Contrast:
    """The contrast over the judged peers but for the two that stand out most."""
    who = columns.judged.copy()
    if np.count_nonzero(who) > 2 * BEST_LEFT_OUT:
        who[np.argsort(-np.where(who, log_e, -np.inf), kind="stable")[:BEST_LEFT_OUT]] = False
    return pair_contrast(columns, population, consistency, columns.peer_votes, who)


def _sure(contrast: Contrast) -> bool:
    """Whether the peers agree with themselves more than chance has it, and not by a trifle."""
    return contrast.log_p <= LOG_LEVEL and (contrast.kappa or 0.0) >= LEAST_EFFECT


def _of_classes(last: Lasts, classes: tuple[ClassEvidence, ...], keeps: bool, pinned: Mask) -> Lasts:
    """The worst of the whole and of the classes that keep their exits."""
    said = {one.lasts for one in classes if one.keeps}
    if keeps or pinned.any():
        said.add(last)
    for one in (Lasts.LONG, Lasts.PARTLY, Lasts.SHORT):
        if one in said:
            return one
    return Lasts.OPEN


def _by_rule(observation: Observation, explained: list[Explanation], verdict: Verdict, seen: Lasts) -> Lasts:
    """What is seen; where that is nothing yet, what the rules say, or a predictor that holds."""
    if seen is not Lasts.OPEN:
        return seen
    holding = {one.name for one in explained if one.holds(LOG_LEVEL)}
    by_site = verdict is Verdict.DESTINATION_LINKED
    if verdict in observation.rules_say or any(
        (one == KERNEL_DESTINATION.name) is by_site for one in holding
    ):
        return Lasts.LONG
    return seen


def _linked(observation: Observation, controls: Controls, trials: tuple[Floats, Floats, Floats]) -> Mask:
    """Peers whose destinations meet their exit again, one by one."""
    tried, true, chance = trials
    log_e = trial_evidence(tried, true, chance)
    among = int(np.count_nonzero(tried))
    if controls.returns is None or observation.lone_returns is None:
        return flag(log_e, among)
    total, _, mine, other = controls.returns.sum(axis=2)
    signed = sign_evidence(mine, other, controls.even)
    if _sites_decide(controls, chance):
        return flag(np.where(total > 0, signed, -np.inf), among)
    mean = np.logaddexp(signed, np.where(np.isfinite(log_e), log_e, 0.0)) - np.log(2)
    return flag(np.where(tried > 0, mean, -np.inf), among)


def _with_returns(controls: Controls, log_e: Floats, trials: tuple[Floats, Floats, Floats]) -> Floats:
    """The evidence that a peer keeps an exit everywhere, with what its returns say where its votes lean.

    Given the votes, a return is one more draw: the product is an e-value, whatever decides from which votes
    on it is taken. Where sites decide for everybody returns say nothing of a peer.
    """
    tried, true, chance = trials
    if controls.returns is None or _sites_decide(controls, chance):
        return log_e
    told = trial_evidence(tried, true, chance)
    return np.where((log_e >= _VOTES_LEAN) & np.isfinite(told), log_e + told, log_e)


def _sites_decide(controls: Controls, chance: Floats) -> bool:
    """Whether others meet the exit that somebody else had at a site oftener than chance gives."""
    assert controls.returns is not None  # noqa: S101
    total, both, _, other = controls.returns.sum(axis=2)
    usual = float(chance.mean()) if chance.size else 1.0
    return bool((both + other).sum() > total.sum() * usual + SIGMAS * np.sqrt(total.sum() + 1))


def _counts(trials: Trials, columns: Columns) -> tuple[Floats, Floats]:
    """Trials and hits as floats, those of networks left out."""
    tried = np.where(columns.narrow, trials.tried, 0).astype(np.float64)
    return tried, np.minimum(np.where(columns.narrow, trials.true, 0).astype(np.float64), tried)


def _repeat_chance(columns: Columns, population: Population) -> Floats:
    """Chance that a peer's next exit is its last one: the shares of the exits it used, c0 at least.

    Some standard errors are added, because trials can be many where the votes that tell the shares are few.
    """
    met = columns.per_peer(columns.flows * population.smooth[columns.exit])
    mean = np.divide(met, columns.peer_flows, out=np.zeros(columns.peers), where=columns.peer_flows > 0)
    same = np.nan_to_num(columns.by_flows(population.same), nan=population.same[0])
    chance: Floats = np.clip(np.maximum(mean, same), 0.0, 1.0)
    doubt = SIGMAS * np.sqrt(chance * (1 - chance) / max(population.effective.sum(), 1.0))
    result: Floats = np.minimum(chance + doubt, 1.0)
    return result


def _returns_link(
    columns: Columns,
    population: Population,
    trials: tuple[Floats, Floats],
    linked: Mask,
    pinned: Mask,
    controls: Controls,
) -> bool:
    """Whether sites see the same exit again, of peers that are not known to keep it everywhere."""
    tried, true = trials
    rest = columns.narrow & ~pinned & (tried > 0)
    again = trial_contrast(columns, population, tried, true, rest)
    effect = again.kappa or 0.0
    if controls.returns is not None:
        effect = min(effect, controls.return_excess(rest).share)
    sure = again.log_p <= LOG_LEVEL and effect >= LEAST_EFFECT and controls.return_evidence(rest)
    return bool(sure or np.count_nonzero(linked) >= enough_persons(int(np.count_nonzero(tried > 0))))


def _more_than_votes(
    columns: Columns,
    population: Population,
    consistency: Floats,
    trials: tuple[Floats, Floats],
    pinned: Mask,
) -> bool:
    """Whether returns agree beyond what keeping an exit everywhere would explain."""
    tried, true = trials
    rest = columns.narrow & ~pinned & (tried > 0)
    again = trial_contrast(columns, population, tried, true, rest)
    other = pair_contrast(columns, population, consistency, columns.peer_votes, rest)
    if not other.peers:
        return not pinned.any()
    if other.log_p > LOG_LEVEL and 2 * (other.kappa or 0.0) < (again.kappa or 0.0):
        return True
    both = rest & (columns.peer_votes > 1)
    more = true[both] / tried[both] - consistency[both]
    excess = float(more.mean())
    tail = log_mean_tail(more.size, excess, float(more.var()) + 1 / more.size, reach=2.0)
    return excess >= 0.1 and tail <= LOG_LEVEL


def linked_peers(evidence: Evidence) -> Mask:
    """The peers whose destinations are linked: those that stand out, or all in question."""
    return evidence.linked if evidence.linked.any() else evidence.columns.narrow & ~evidence.pinned
