# SPDX-License-Identifier: Apache-2.0
"""exitprint: does the exit address that a WireGuard peer gets say who the peer is?

The packages follow the way of the data: ``kernel`` (load the eBPF program, read its tables), ``peers``
(WireGuard), ``rules`` (source NAT rules and exit pools), ``service`` (the sensor and the aggregator),
``analysis`` (pure: from counts to a verdict), ``lab`` (a whole relay on one machine).
"""

__version__ = "0.1.0"
