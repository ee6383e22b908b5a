# SPDX-License-Identifier: Apache-2.0
"""The table of verdicts, reasons and contrasts: whole, in one order, the same as rules and runbooks have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from detector.base.family import Family
from detector.base.verdicts import (
    CONTRAST_WORDS,
    EXCLUSIVE_WORDS,
    LEAKS,
    RANKED,
    REASON_WORDS,
    VERDICT_WORDS,
    VERDICTS,
    ContrastName,
    ExclusiveKind,
    Reason,
    Severity,
    Verdict,
    plain,
    words_of,
)

DEPLOY = Path(__file__).parents[3] / "deploy"


def test_every_word_of_the_judgement_is_in_its_table() -> None:
    """Every word of the judgement is in its table."""
    assert set(VERDICT_WORDS) == set(Verdict)
    assert set(REASON_WORDS) == set(Reason)
    assert set(EXCLUSIVE_WORDS) == set(ExclusiveKind)
    assert set(CONTRAST_WORDS) == set(ContrastName)


def test_ranks_are_one_to_eight_and_unknown_comes_between_leaks_and_harmless() -> None:
    """Ranks are one to eight and unknown comes between leaks and harmless."""
    assert sorted(words.rank for words in VERDICT_WORDS.values()) == list(range(1, len(VERDICTS) + 1))
    assert (*LEAKS, Verdict.UNKNOWN, *VERDICTS[len(LEAKS) : -1]) == RANKED


def test_leaks_are_what_is_critical_or_a_warning() -> None:
    """Leaks are what is critical or a warning."""
    bad = {Severity.CRITICAL, Severity.WARNING}
    assert {verdict for verdict, words in VERDICT_WORDS.items() if words.severity in bad} == set(LEAKS)


def test_every_runbook_that_is_named_is_there_and_is_an_alert() -> None:
    """Every runbook that is named is there and is an alert."""
    rules = yaml.safe_load((DEPLOY / "prometheus/exitprint-alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    named = {words.runbook for words in VERDICT_WORDS.values() if words.runbook}
    named |= {words.runbook for words in REASON_WORDS.values()}
    assert named <= alerts
    assert all((DEPLOY / f"runbooks/{name}.md").is_file() for name in named)
    assert all(VERDICT_WORDS[verdict].runbook for verdict in (*LEAKS, Verdict.UNKNOWN))


def test_recording_rules_rank_verdicts_as_the_table_does() -> None:
    """Recording rules rank verdicts as the table does."""
    text = (DEPLOY / "prometheus/exitprint-recording.yml").read_text()
    for verdict, words in VERDICT_WORDS.items():
        if verdict is Verdict.UNKNOWN:
            assert f"label_replace({words.rank} * relay_family:exitprint_verdict:unknown" in text
        else:
            series = rf'relay_family:exitprint_verdict:trusted\{{verdict="{verdict}"\}}'
            assert re.search(rf"\b{words.rank} \* \(?\s*{series}", text)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_sentences_are_sentences(verdict: Verdict) -> None:
    """Sentences are sentences."""
    words = VERDICT_WORDS[verdict]
    assert words.first.endswith(".")
    assert not words.headline.endswith(".")
    assert "_" not in words.headline + words.meaning + plain(verdict)


def test_a_verdict_that_nobody_knows_has_the_words_of_unknown() -> None:
    """A verdict that nobody knows has the words of unknown."""
    assert words_of("[red]nonsense") is VERDICT_WORDS[Verdict.UNKNOWN]
    assert words_of("pinned") is VERDICT_WORDS[Verdict.PINNED]


def test_a_family_says_its_index_version_and_names() -> None:
    """A family says its index version and names."""
    said = [(family.index, family.version, family.nft, family.label) for family in Family]
    assert said == [(0, 4, "ip", "IPv4"), (1, 6, "ip6", "IPv6")]
    assert list(Family)[Family.IPV6.index] is Family.IPV6
