# SPDX-License-Identifier: Apache-2.0
"""What must have happened before any test module is imported."""

from __future__ import annotations

# Whole, as tests use more of it: `detector.wireguard.netlink` would import parts of it without the package.
import pyroute2  # noqa: F401
