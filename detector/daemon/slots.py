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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

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
    """What an update changed. Apply `retired` and `left` before `added`: a tunnel address may be in both.

    Attributes:
        added: slots that are new.
        retired: slots whose peer or tunnel address is gone; each number is taken until `release`.
        left: slots whose tunnel address is gone and that are kept for it.
        ended: numbers of slots that were kept for long enough; each is taken until `release`.
        moved: slots whose interface was created anew, with the new ifindex.
        refused: allowed-ips that have no slot since the table is full; they are tried again at each update.
    """

    added: tuple[Slot, ...] = ()
    retired: tuple[Slot, ...] = ()
    left: tuple[Slot, ...] = ()
    ended: tuple[int, ...] = ()
    moved: tuple[Slot, ...] = ()
    refused: int = 0


class _Owner(NamedTuple):
    """What a slot stands for."""

    interface: str
    key: PublicKey
    allowed: AllowedIp

    def __repr__(self) -> str:
        return "<owner of a slot>"


class _Kept(NamedTuple):
    """A slot whose address has left, a keyed hash of whose key it was, and until when it is kept."""

    number: int
    key: bytes
    pseudonym: str
    until: float


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

    A person is a tunnel address over all its stays: when it leaves, its slot is kept for it, and it has the
    same one and the same pseudonym when it comes back, under whatever key, unless that was somebody else's at
    the time. What is kept for that are keyed hashes of the address and of the key.

    Args:
        capacity: slots of the kernel tables; numbers are below it.
        canaries: the name of each by tunnel address.
        keep: seconds for which the slot of an address that has left is kept, unless there is need of room.
        shuffle: brings new ones into an order. Addresses are handed out in theirs, and a number that follows
            it would tell the aggregator which address it stands for.
    """

    capacity: int
    canaries: Mapping[Address, str] = field(default_factory=dict, repr=False)
    keep: float = 0.0
    pseudonyms: Pseudonyms = field(default_factory=Pseudonyms, repr=False)
    shuffle: Callable[[list[Any]], None] = field(default=secrets.SystemRandom().shuffle, repr=False)
    _slots: dict[_Owner, Slot] = field(default_factory=dict, repr=False)
    _kept: dict[bytes, _Kept] = field(default_factory=dict, repr=False)
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _retired: set[int] = field(default_factory=set, repr=False)
    _free: deque[int] = field(default_factory=deque, repr=False)
    _next: int = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def taken(self) -> int:
        """Slots that are in use, kept or not yet released."""
        return len(self._slots) + len(self._kept) + len(self._retired)

    @property
    def limit(self) -> int:
        """One more than the highest number that was ever handed out."""
        return self._next

    def held(self) -> dict[str, int]:
        """How many of what is in memory: public keys, tunnel addresses, slots that wait to be let go."""
        waiting = len(self._kept) + len(self._retired)
        return {"keys": len(self.pseudonyms), "addresses": len(self._slots), "retired": waiting}

    def slots(self) -> list[Slot]:
        """Every slot in use."""
        return list(self._slots.values())

    def update(self, snapshot: Snapshot, now: float = 0.0) -> Changes:
        """Follow a snapshot. What is known of an interface that could not be read stands.

        Args:
            snapshot: who is there.
            now: seconds on a clock that only goes forward.
        """
        wanted = _owners(snapshot)
        gone = [
            owner for owner in self._slots if owner not in wanted and owner.interface not in snapshot.unread
        ]
        others = {owner.key for owner in self._slots}
        left = tuple(self._leave(owner, now) for owner in gone)
        moved = tuple(self._move(wanted))
        new = [owner for owner in wanted if owner not in self._slots]
        ended = [self._give_up(place) for place in self._taken_over(new, others)]
        added = [self._back(owner, wanted[owner]) for owner in new if self._place(owner) in self._kept]
        fresh = [owner for owner in new if owner not in self._slots]
        self.shuffle(fresh)
        room = self.capacity - self.taken
        added += [self._add(owner, wanted[owner]) for owner in fresh[:room]]
        refused = len(fresh) - min(len(fresh), max(room, 0))
        ended += self._end(now, refused)
        self._forget(gone)
        if not self.keep:
            return Changes(tuple(added), retired=left, moved=moved, refused=refused)
        return Changes(tuple(added), left=left, ended=tuple(ended), moved=moved, refused=refused)

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

    def _leave(self, owner: _Owner, now: float) -> Slot:
        slot = self._slots.pop(owner)
        if self.keep:
            kept = _Kept(slot.number, self._hash(owner.key), slot.pseudonym, now + self.keep)
            self._kept[self._place(owner)] = kept
        else:
            self._retired.add(slot.number)
        return slot

    def _back(self, owner: _Owner, ifindex: int) -> Slot:
        """The slot that was kept for an address, whoever has it now."""
        kept = self._kept.pop(self._place(owner))
        slot = Slot(kept.number, owner.interface, ifindex, owner.allowed, kept.pseudonym)
        self._slots[owner] = slot
        return slot

    def _taken_over(self, new: Iterable[_Owner], others: set[PublicKey]) -> list[bytes]:
        """The places of kept slots whose address went to somebody else, who was there before."""
        places = ((self._place(owner), owner.key) for owner in new)
        return [
            place
            for place, key in places
            if key in others and place in self._kept and self._kept[place].key != self._hash(key)
        ]

    def _give_up(self, place: bytes) -> int:
        number = self._kept.pop(place).number
        self._retired.add(number)
        return number

    def _end(self, now: float, wanted: int) -> Iterable[int]:
        """Let go of slots that were kept for long enough, and of the oldest where there is need of room."""
        for place, kept in list(self._kept.items()):  # in the order in which they were left
            if kept.until > now and wanted <= 0:
                return
            wanted -= 1
            yield self._give_up(place)

    def _place(self, owner: _Owner) -> bytes:
        """A keyed hash of where an address is, in the place of the address."""
        text = b"%s/%s/%d" % (owner.interface.encode(), owner.allowed.network, owner.allowed.prefix)
        return self._hash(text)

    def _hash(self, text: bytes) -> bytes:
        return hashlib.blake2s(text, key=self._secret, person=b"place").digest()

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
