# SPDX-License-Identifier: Apache-2.0
"""Slots: the numbers that stand for peers in the kernel tables and in all that is counted.

A slot stands for one allowed-ip of one peer on one interface. Its number goes to another only after whoever
counts has let it go (`SlotTable.release`), so that evidence of two peers never mixes.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from detector.base.canaries import canary_pseudonym
from detector.base.family import Address
from detector.wireguard.model import AllowedIp, PublicKey, Snapshot

_PSEUDONYM_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """One allowed-ip of one peer, as the kernel tables and the aggregator know it.

    Attributes:
        number: its index in the tables, below the capacity.
        interface, ifindex: where the peer is.
        allowed: the tunnel address; it stays in the sensor.
        pseudonym: the same for all slots of one public key; for a canary its name.
    """

    number: int
    interface: str
    ifindex: int
    allowed: AllowedIp
    pseudonym: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update changed. Apply `retired` before `added`: a tunnel address may be in both.

    Attributes:
        added: slots that are new.
        retired: slots whose peer or tunnel address is gone; each number is taken until `release`.
        moved: slots whose interface was created anew, with the new ifindex.
        refused: allowed-ips that have no slot since the table is full; they are tried again at each update.
    """

    added: tuple[Slot, ...] = ()
    retired: tuple[Slot, ...] = ()
    moved: tuple[Slot, ...] = ()
    refused: int = 0


class _Owner(NamedTuple):
    """What a slot stands for."""

    interface: str
    key: PublicKey
    allowed: AllowedIp

    def __repr__(self) -> str:
        return "<owner of a slot>"


class Pseudonyms:
    """Names for public keys, made with a key that is drawn at start and never told.

    Args:
        secret: 32 bytes; drawn unless given.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._names: dict[PublicKey, str] = {}
        self._owners: dict[str, PublicKey] = {}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, key: PublicKey) -> str:
        """The key's pseudonym: the same at each call, and no other key's."""
        name = self._names.get(key)
        if name is None:
            name = next(name for name in self._candidates(key) if name not in self._owners)
            self._names[key], self._owners[name] = name, key
        return name

    def forget(self, key: PublicKey) -> None:
        """Let go of a key; if it comes back it has the same pseudonym, unless another took it meanwhile."""
        name = self._names.pop(key, None)
        if name is not None:
            del self._owners[name]

    def _candidates(self, key: PublicKey) -> Iterable[str]:
        """40 bits of a keyed hash, and one letter more as long as another key has that name."""
        digest = hashlib.blake2s(key, key=self._secret, person=b"peer").digest()
        text = base64.b32encode(digest).decode().lower().rstrip("=")
        return (f"peer-{text[:size]}" for size in range(_PSEUDONYM_CHARACTERS, len(text) + 1))


@dataclass(slots=True)
class SlotTable:
    """Which slot stands for what.

    Args:
        capacity: slots of the kernel tables; numbers are below it.
        canaries: the name of each by tunnel address.
    """

    capacity: int
    canaries: Mapping[Address, str] = field(default_factory=dict, repr=False)
    pseudonyms: Pseudonyms = field(default_factory=Pseudonyms, repr=False)
    _slots: dict[_Owner, Slot] = field(default_factory=dict, repr=False)
    _retired: set[int] = field(default_factory=set, repr=False)
    _free: deque[int] = field(default_factory=deque, repr=False)
    _next: int = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def taken(self) -> int:
        """Slots that are in use or not yet released."""
        return len(self._slots) + len(self._retired)

    def held(self) -> dict[str, int]:
        """How many of what is in memory: public keys, tunnel addresses, slots that wait to be let go."""
        return {"keys": len(self.pseudonyms), "addresses": len(self._slots), "retired": len(self._retired)}

    def slots(self) -> list[Slot]:
        """Every slot in use."""
        return list(self._slots.values())

    def update(self, snapshot: Snapshot) -> Changes:
        """Follow a snapshot. What is known of an interface that could not be read stands."""
        wanted = _owners(snapshot)
        gone = [
            owner for owner in self._slots if owner not in wanted and owner.interface not in snapshot.unread
        ]
        retired = tuple(self._retire(owner) for owner in gone)
        moved = tuple(self._move(wanted))
        fresh = [owner for owner in wanted if owner not in self._slots]
        added = tuple(self._add(owner, wanted[owner]) for owner in fresh[: self.capacity - self.taken])
        self._forget(gone)
        return Changes(added, retired, moved, len(fresh) - len(added))

    def release(self, numbers: Iterable[int]) -> None:
        """Let retired slots be used again: nothing is counted for them any more.

        Raises:
            ValueError: a number is not of a retired slot.
        """
        for number in numbers:
            if number not in self._retired:
                raise ValueError(f"slot {number} is not retired")
            self._retired.remove(number)
            self._free.append(number)

    def _retire(self, owner: _Owner) -> Slot:
        slot = self._slots.pop(owner)
        self._retired.add(slot.number)
        return slot

    def _move(self, wanted: dict[_Owner, int]) -> Iterable[Slot]:
        for owner, slot in self._slots.items():
            ifindex = wanted.get(owner, slot.ifindex)
            if ifindex != slot.ifindex:
                self._slots[owner] = replace(slot, ifindex=ifindex)
                yield self._slots[owner]

    def _add(self, owner: _Owner, ifindex: int) -> Slot:
        # Numbers that were never used come first: a late packet of a retired slot finds nobody.
        if self._next < self.capacity:
            number = self._next
            self._next += 1
        else:
            number = self._free.popleft()
        slot = Slot(number, owner.interface, ifindex, owner.allowed, self._pseudonym(owner))
        self._slots[owner] = slot
        return slot

    def _pseudonym(self, owner: _Owner) -> str:
        """A canary has its name; whoever else has its own address in the networks of a canary does not."""
        if not owner.allowed.is_network and (name := self.canaries.get(owner.allowed.address)):
            return canary_pseudonym(name)
        return self.pseudonyms.name(owner.key)

    def _forget(self, gone: list[_Owner]) -> None:
        if gone:
            known = {owner.key for owner in self._slots}
            for owner in gone:
                if owner.key not in known:
                    self.pseudonyms.forget(owner.key)


def _owners(snapshot: Snapshot) -> dict[_Owner, int]:
    """Everything that wants a slot, with the ifindex where it is now."""
    return {
        _Owner(part.interface.name, key, allowed): part.interface.ifindex
        for part in snapshot.interfaces
        for key, allowed_ips in part.peers.items()
        for allowed in allowed_ips
    }
