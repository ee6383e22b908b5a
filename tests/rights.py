# SPDX-License-Identifier: Apache-2.0
"""Commands as another user than root."""

from __future__ import annotations

STRANGER = 65534

# What a command is started by. The one right that it keeps lets it read our code, which may be below /root.
AS_STRANGER = [
    *("setpriv", "--reuid", str(STRANGER), "--regid", str(STRANGER), "--clear-groups"),
    *(f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
]
