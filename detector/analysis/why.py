# SPDX-License-Identifier: Apache-2.0
"""One paragraph for people: what was seen, against what chance, what it lets whom do, what changes it."""

from __future__ import annotations

from detector.analysis.report import FamilyReport
from detector.base.verdicts import MORE_FLOWS, REASON_WORDS, Verdict
from detector.predictors import meaning


def because(report: FamilyReport) -> str:
    """The paragraph that belongs to a report's verdict."""
    return _WORDS[report.verdict](report)


def _predictable(report: FamilyReport) -> str:
    name = report.predictor or ""
    one = report.explained[name]
    trials = "flows" if name == "kernel_destination" else "peers"
    who = "anybody who sees an exit of this relay and one of another relay of this kind"
    if name == "kernel_destination":
        who = "a site whose visitor comes back over another relay of this kind"
    return (
        f"{one.ratio:.0%} of {one.trials:,} {trials} have the exit that {meaning(name)} gives; chance would "
        f"be {_share(one.chance)}. No secret is involved: {who} can tell that it is the same person, and "
        f"what one exit tells about the next is {report.leak_bits:.1f} bits. {_part(report)}A choice that "
        "depends on a secret of this relay, or on nothing at all, would change the verdict."
    )


def _exclusive(report: FamilyReport) -> str:
    count = report.peers_flagged.get(Verdict.EXCLUSIVE, 0)
    return (
        f"{count:,} of {report.judged:,} judged peers are alone on an exit that they keep, more than "
        "chance leaves "
        f"alone on {report.pool_size:,} exits, or the rules say so. For them the exit address is the "
        "identity: any "
        "site recognises them at each visit, and one look at who they are names all the rest. A pool that "
        "peers share would change the verdict."
    )


def _pinned(report: FamilyReport) -> str:
    any_ = report.contrasts["any"]
    return (
        f"Two flows of one peer to different destinations share their exit in {_share(any_.observed)} "
        "of cases; "
        f"independent exits would give {_share(any_.chance)} ({any_.peers:,} peers, {any_.trials:,} "
        "pairs). "
        f"{report.peers_flagged.get(Verdict.PINNED, 0):,} peers stand out each by itself. {_part(report)}"
        "Any site, and anybody who compares sites, can link the visits of a peer on this relay; no "
        "function that we "
        "know links them to other relays. A new draw for each session or flow would change the verdict."
    )


def _destination_linked(report: FamilyReport) -> str:
    again = report.contrasts["same_destination"]
    return (
        f"A peer that goes back to a destination gets the same exit in {_share(again.observed)} of cases; "
        f"independent exits would give {_share(again.chance)} ({again.peers:,} peers, "
        f"{again.trials:,} returns). "
        "So a site recognises its visitor by the exit, though different sites see different exits. "
        f"{_part(report)}A choice that does not depend on the destination alone would change the verdict."
    )


def _session_sticky(report: FamilyReport) -> str:
    any_ = report.contrasts["any"]
    return (
        "Within a session a peer keeps its exit, and the next session gets a new one: two flows "
        "share their exit in "
        f"{_share(any_.observed)} of cases over the whole window (chance {_share(any_.chance)}), "
        "first flows of "
        "sessions no more than chance. This is what RFC 4787 and RFC 6888 ask for: a site can follow one "
        "session, and nobody can link two of them. Exits that outlive a session would change the verdict."
    )


def _single_exit(report: FamilyReport) -> str:
    return (
        f"All {report.flows:,} flows of {report.peers:,} peers left by one exit. It is the same for "
        "everybody, so it "
        "says nothing about who a peer is. A second exit would change the verdict, or at least ask "
        "the question anew."
    )


def _unlinkable(report: FamilyReport) -> str:
    any_, again = report.contrasts["any"], report.contrasts["same_destination"]
    text = (
        f"Two flows of one peer share their exit in {_share(any_.observed)} of cases to different "
        "destinations "
        f"(chance {_share(any_.chance)}, {any_.peers:,} peers) and in {_share(again.observed)} to the "
        "same one "
        f"(chance {_share(again.chance)}, {again.peers:,} peers); no predictor explains more than "
        "chance does. This is "
        "enough evidence to have shown a leak of a quarter of the peers or more, so the exit address does "
        "not say who the peer is. "
    )
    port = report.contrasts["same_port"]
    if port.kappa is not None and port.kappa > 0.25 and port.peers >= 3:
        text += (
            f"Flows that reuse a source port do share their exit ({_share(port.observed)}): programs "
            "that keep to "
            "one port can be followed. "
        )
    return text + "Exits that repeat for a peer or a site would change the verdict."


def _unknown(report: FamilyReport) -> str:
    missing = "; ".join(REASON_WORDS[reason].missing for reason in report.reasons) or "too little was seen"
    text = (
        f"{report.flows:,} flows of {report.peers:,} peers, {report.coverage:.1%} of all flows, are "
        "not enough for a "
        f"verdict: {missing}. This does not say that the relay is safe. "
    )
    if report.suspected:
        named = ", ".join(finding.value for finding in report.suspected)
        text += f"What did get through points to: {named}. "
    cures = [REASON_WORDS[reason].cure for reason in report.reasons]
    return text + next((cure for cure in cures if cure != MORE_FLOWS), MORE_FLOWS)


_WORDS = {
    Verdict.PREDICTABLE: _predictable,
    Verdict.EXCLUSIVE: _exclusive,
    Verdict.PINNED: _pinned,
    Verdict.DESTINATION_LINKED: _destination_linked,
    Verdict.SESSION_STICKY: _session_sticky,
    Verdict.SINGLE_EXIT: _single_exit,
    Verdict.UNLINKABLE: _unlinkable,
    Verdict.UNKNOWN: _unknown,
}


def _share(value: float) -> str:
    """A share for people: whole percents, finer ones where they are small."""
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _part(report: FamilyReport) -> str:
    """How large a part of the peers leaks, where it is not nearly all of them, and which rule serves it."""
    part = ""
    if report.leaking_share <= 0.9 and report.judged:
        share = _share(report.leaking_share)
        part = f"It holds for about {share} of the {report.judged:,} judged peers. "
    return part + _rules(report)


def _rules(report: FamilyReport) -> str:
    """The rules whose peers show the verdict, where there are others whose peers do not."""
    named = [pool for pool in report.pools if pool.origin and pool.judged]
    shown = [pool for pool in named if 2 * pool.by_verdict.get(report.verdict, 0) >= pool.judged]
    if not shown or len(shown) == len(named):
        return ""
    places = "; ".join(dict.fromkeys(pool.origin for pool in shown))
    count, judged = sum(one.by_verdict[report.verdict] for one in shown), sum(one.judged for one in shown)
    return f"It is {count:,} of the {judged:,} judged peers that the rule at {places} serves. "
