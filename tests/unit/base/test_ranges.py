# SPDX-License-Identifier: Apache-2.0
"""What people write for a range of addresses, and the arithmetic of ranges."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import AddressRange, normalised, parse_pool


@pytest.mark.parametrize(
    ("text", "size", "family"),
    [
        ("203.0.113.68-203.0.113.126", 59, Family.IPV4),
        (" 203.0.113.68 - 203.0.113.126 ", 59, Family.IPV4),
        ("203.0.113.68", 1, Family.IPV4),
        ("203.0.113.64/26", 64, Family.IPV4),
        ("2001:db8::10-2001:db8::40", 49, Family.IPV6),
        ("2001:db8::-2001:db8:ffff::", 0xFFFF << 80 | 1, Family.IPV6),
        ("::/0", 1 << 128, Family.IPV6),
    ],
)
def test_what_people_write(text: str, size: int, family: Family) -> None:
    """Addresses, ranges and prefixes of both families are read."""
    pool = parse_pool(text)
    assert (pool.size, pool.family) == (size, family)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not an exit pool"),
        ("203.0.113.300", "is not an exit pool"),
        ("203.0.113.68/26", "host bits"),
        ("203.0.113.9-203.0.113.1", "inverted"),
        ("203.0.113.9-2001:db8::1", "mixes"),
        ("203.0.113.1-203.0.113.2-203.0.113.3", "is not an exit pool"),
        ("exit.example", "is not an exit pool"),
    ],
)
def test_a_wrong_pool_names_the_value(text: str, why: str) -> None:
    """The error quotes what was written and shows what is expected."""
    with pytest.raises(UsageError, match=why) as caught:
        parse_pool(text)
    assert repr(text) in caught.value.what
    assert caught.value.hint


@given(st.text(alphabet="0123456789abcdef.:-/ %x", max_size=40))
def test_any_text_is_a_pool_or_an_error(text: str) -> None:
    """No text ends in anything but a pool or a `UsageError`."""
    with contextlib.suppress(UsageError):
        assert parse_pool(text).size > 0


RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(
        lambda ends: AddressRange(ip_address(1000 + ends[0]), ip_address(1000 + ends[0] + ends[1]))
    ),
    max_size=12,
)


@given(RANGES)
def test_normalising_keeps_the_addresses(pools: list[AddressRange]) -> None:
    """The same addresses, in ranges that neither overlap nor touch."""
    made = normalised(pools)
    assert {a for pool in made for a in pool.addresses()} == {a for pool in pools for a in pool.addresses()}
    assert all(int(a.last) + 1 < int(b.first) for a, b in pairwise(made))


def test_positions_in_a_pool() -> None:
    """Index and address are inverse, and both refuse what is outside."""
    pool = parse_pool("203.0.113.68-203.0.113.126")
    assert pool.at(pool.index(ip_address("203.0.113.70"))) == ip_address("203.0.113.70")
    with pytest.raises(IndexError):
        pool.at(59)
    with pytest.raises(ValueError, match="not of this pool"):
        pool.index(ip_address("203.0.113.67"))


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("203.0.113.64/26", "203.0.113.64/26"),
        ("203.0.113.1", "203.0.113.1/32"),
        ("::/0", "::/0"),
        ("203.0.113.1-203.0.113.2", "None"),
        ("203.0.113.0-203.0.113.2", "None"),
    ],
)
def test_a_pool_that_is_a_prefix(text: str, network: str) -> None:
    """A range is a prefix only if it is aligned and a power of two."""
    assert str(parse_pool(text).network()) == network
