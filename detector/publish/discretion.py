# SPDX-License-Identifier: Apache-2.0
"""What everybody may see of the exits: nothing of one that few peers have, and no count to the last flow.

On a relay that leaks, an exit stands for a person. A page that tells the exit's flows at each interval is a
log of what that person does, for every local user, and for whoever gets a browser to look.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from detector.counts.load import Column, Load

_COUNTS = frozenset({"flows", "votes", "tried", "trials", "sessions_begun"})
_STEP = math.log(1.25)


def binned(count: float) -> int:
    """A count to the nearest of some numbers, each a quarter more than the one before."""
    if count < 1:
        return 0
    return round(math.exp(_STEP * round(math.log(count) / _STEP)))


def coarse(answer: Any) -> Any:
    """An answer of the socket as it is told to those who are not root: counts of flows in bins.

    Whoever may ask sees peers by pseudonym. Who asks again and again is not to see single flows of one.
    """
    if isinstance(answer, dict):
        return {
            key: binned(value) if key in _COUNTS and isinstance(value, int) else coarse(value)
            for key, value in answer.items()
        }
    return [coarse(one) for one in answer] if isinstance(answer, list) else answer


def discreet(load: Load, floor: int) -> Load:
    """The load of a family's exits as it may be shown.

    Args:
        load: as it is.
        floor: peers that an exit, or exits that share a column, must have to be told of.
    """
    columns = tuple(_discreet(column, floor) for column in load.columns)
    shown = [column.flows / column.exits for column in columns if not column.withheld]
    flows = binned(load.flows)
    busiest = min(max(shown, default=0.0) / flows, 1.0) if flows else 0.0
    return replace(load, columns=columns, flows=flows, busiest=busiest)


def _discreet(column: Column, floor: int) -> Column:
    if column.flows and column.persons < floor:
        return replace(column, flows=0, peers=0, persons=0, withheld=True)
    return replace(column, flows=binned(column.flows))
