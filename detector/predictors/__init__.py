# SPDX-License-Identifier: Apache-2.0
"""The predictor bank: every function of public values that could explain an exit, worst first.

A new predictor is one small module with NAME, MEANING and `predict`, and one line in `BANK`. NumPy-free:
the sensor, which alone knows tunnel addresses, computes the predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detector.base.family import Address
from detector.predictors import crc32, kernel_persistent, linear, modulo, netmap, seeded_jhash
from detector.predictors.pool import ExitPool, HashRule, Prediction

__all__ = ["BANK", "NAMES", "ExitPool", "HashRule", "Predictor", "meaning", "predict"]


@dataclass(frozen=True, slots=True)
class Predictor:
    """One way in which an exit may follow from what anybody can know.

    Attributes:
        name: as the report and the metrics write it.
        meaning: what decides on the exit, for people.
        predict: tunnel addresses and a pool to one exit each, or None where it does not apply. None where the
            kernel program tries it, because it needs the destination.
        ranks: what it says of a tunnel address depends on all the others.
    """

    name: str
    meaning: str
    predict: Callable[[Sequence[Address], ExitPool], Prediction | None] | None
    ranks: bool = False

    def column(
        self, tunnel_addresses: Sequence[Address], pool: ExitPool, everyone: Sequence[Address]
    ) -> Prediction | None:
        """What it says of each tunnel address, one of `everyone`, for one pool."""
        if self.predict is None or not self.ranks:
            return self.predict and self.predict(tunnel_addresses, pool)
        said = self.predict(everyone, pool)
        if said is None:
            return None
        exit_of = dict(zip(everyone, said, strict=True))
        return [exit_of[address] for address in tunnel_addresses]


KERNEL_DESTINATION = Predictor(
    "kernel_destination",
    "the kernel's hash of tunnel address and destination, with no secret in it (a range without persistent)",
    None,
)

BANK = (
    Predictor(kernel_persistent.NAME, kernel_persistent.MEANING, kernel_persistent.predict),
    KERNEL_DESTINATION,
    Predictor(seeded_jhash.NAME, seeded_jhash.MEANING, seeded_jhash.predict),
    Predictor(netmap.NAME, netmap.MEANING, netmap.predict),
    Predictor(modulo.NAME, modulo.MEANING, modulo.predict),
    Predictor(crc32.NAME, crc32.MEANING, crc32.predict),
    Predictor(linear.NAME, linear.MEANING, linear.predict, ranks=True),
)

NAMES = tuple(predictor.name for predictor in BANK)


def meaning(name: str) -> str:
    """What a predictor means, for people; its own name where the bank does not have it."""
    return next((predictor.meaning for predictor in BANK if predictor.name == name), name)


def predict(
    tunnel_addresses: Sequence[Address], pools: Sequence[ExitPool], everyone: Sequence[Address] | None = None
) -> dict[str, list[list[Address | None]]]:
    """What each predictor of the tunnel address alone says.

    Args:
        tunnel_addresses: P addresses of one family.
        pools: K pools of that family. A peer may be served by any of them.
        everyone: all tunnel addresses of the relay in that family, the P among them, since ranks count; the
            P themselves unless given.

    Returns:
        Per predictor that applies to at least one pool, P rows of K exits, None where it says nothing.
        This is `Observation.predicted` once exits are replaced by their index and None by -1.
    """
    said: dict[str, list[list[Address | None]]] = {}
    for predictor in BANK:
        if predictor.predict is None:
            continue
        columns = [predictor.column(tunnel_addresses, pool, everyone or tunnel_addresses) for pool in pools]
        if any(column is not None for column in columns):
            filled = [column or [None] * len(tunnel_addresses) for column in columns]
            said[predictor.name] = [list(row) for row in zip(*filled, strict=True)]
    return said
