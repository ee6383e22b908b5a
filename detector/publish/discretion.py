# SPDX-License-Identifier: Apache-2.0
"""What everybody may see of the exits: nothing of one that few peers have, and no count to the last flow.

On a relay that leaks, an exit stands for a person. A page that tells the exit's flows at each interval is a
log of what that person does, for every local user, and for whoever gets a browser to look.
"""

from __future__ import annotations

from dataclasses import replace

from detector.counts.load import Column, Load
from detector.publish.bins import binned


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
