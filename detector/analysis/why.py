# SPDX-License-Identifier: Apache-2.0
"""One paragraph for people: what was seen, against what chance, what it lets whom do, what changes it."""

from __future__ import annotations

from detector.analysis.report import FamilyReport
from detector.base.verdicts import EXCLUSIVE_WORDS, MORE_FLOWS, REASON_WORDS, Reason, Verdict, plain
from detector.predictors import meaning


def because(report: FamilyReport) -> str:
    """The paragraph that belongs to a report's verdict."""
    return _WORDS[report.verdict](report) + _standing_out(report) + _untranslated(report)


def beside_it(report: FamilyReport) -> str:
    """The sentence on a family that is too small to decide for the relay."""
    return (
        f"Beside it, {report.family.value} carried {report.flows:,} flows of {report.peers:,} peers, too "
        f"little to decide for the relay: {plain(report.verdict.value)}."
    )


def _standing_out(report: FamilyReport) -> str:
    """Peers of whom the verdict is not true."""
    said = [f"{count:,} {plain(verdict.value)}" for verdict, count in report.stand_out.items() if count]
    if not said:
        return ""
    return (
        f" Peers stand out all the same: {', '.join(said)}. They are too few for a word about the relay, "
        "and nothing harmless is said of them."
    )


def _untranslated(report: FamilyReport) -> str:
    """Flows that no rule translates, where the verdict is about something else."""
    if report.verdict is Verdict.EXCLUSIVE and "global" in report.untranslated:
        return ""
    how = {
        "global": "with their own global address",
        "private": "with a private address",
        "untracked": "past connection tracking",
    }
    said = [
        f"{flows:,} flows of {peers:,} peers left the relay untranslated, {how[kind]}"
        for kind, (flows, peers) in report.untranslated.items()
    ]
    return f" {'; '.join(said)}." if said else ""


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
    kinds = "; ".join(
        f"{number:,} {EXCLUSIVE_WORDS[kind]}" for kind, number in report.exclusive_kinds.items()
    )
    return (
        f"{count:,} of {report.persons:,} peers have something of the exits to themselves: {kinds}. For them "
        "the exit address is the identity: any site recognises them at each visit, and one look at who they "
        "are names all the rest. A pool that peers share would change the verdict."
    )


def _pinned(report: FamilyReport) -> str:
    any_ = report.contrasts["any"]
    return (
        f"Two flows of one peer to different destinations share their exit in {_share(any_.observed)} "
        "of cases; "
        f"independent exits would give {_share(any_.chance)} ({any_.peers:,} peers, {any_.trials:,} "
        "pairs). "
        f"{report.peers_flagged.get(Verdict.PINNED, 0):,} peers stand out each by itself. "
        f"{_where(report)}{_part(report)}"
        "Any site, and anybody who compares sites, can link the visits of a peer on this relay; no "
        "function that we "
        "know links them to other relays. A new draw for each session or flow would change the verdict."
    )


def _where(report: FamilyReport) -> str:
    """In which flows, and in what unit, where it is not all flows and the address."""
    text = ""
    if report.flow_class is not None:
        text += f"It is the flows of one class, {report.flow_class}, that keep their exit. "
    if report.prefix is not None:
        text += f"What a peer keeps is not an address but a prefix of {report.prefix} bits. "
    return text


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
    how = "by one exit" if report.exits == 1 else "by the exit that everybody had at the time"
    return (
        f"All {report.flows:,} flows of {report.peers:,} peers left {how}. It is the same for "
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
        f"chance does. A leak of more than {_share(report.largest_missed)} of the peers would have shown, so "
        "the exit address does not say who the peer is. "
    )
    if report.exits_drift:
        text += "Everybody's exits change with time, which tells nobody apart. "
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
        text += f"What was seen points to: {named}. "
    wanting = {Reason.SMALL_SAMPLE, Reason.TOO_FEW_PEERS, Reason.DESTINATIONS_NOT_REPEATED} & {
        *report.reasons
    }
    if wanting and report.largest_missed < 1:
        text += f"A leak of up to {_share(report.largest_missed)} of the peers could have been missed. "
    if wanting and report.seconds_to_go:
        text += f"At this rate it takes {_duration(report.seconds_to_go)} more. "
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


def _duration(seconds: float) -> str:
    """A time for people, rounded up."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"about {-(-seconds // length):.0f} {unit}"
    return "about two minutes"


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
