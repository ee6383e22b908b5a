# SPDX-License-Identifier: Apache-2.0
"""How much one observed exit tells about the next of the same peer: mutual information, in bits."""

from __future__ import annotations

import numpy as np

from detector.analysis.numerics import Floats


def mutual_information(share: float, exits: Floats) -> float:
    """Of two exits of a peer that is, with probability `share`, one that keeps its exit.

    The logarithm is averaged, not taken of an average: a tenth of the peers on 59 exits is 0.18 bits and not
    the 2.8 that the lift of agreement would say.

    Args:
        share: 0 to 1.
        exits: their shares, shape (E,); what they lack to one is spread too thin to matter.
    """
    kept = min(max(share, 0.0), 1.0)
    shares = exits[exits > 0]
    if not kept or not shares.size:
        return 0.0
    shares = shares / shares.sum()
    both = (1 - kept) * shares**2 + kept * shares
    told = float((both * np.log2(both / shares**2)).sum())
    apart = 1 - float(both.sum())
    if kept < 1 and apart > 0:
        told += apart * float(np.log2(1 - kept))
    return max(told, 0.0)
