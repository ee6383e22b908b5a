# SPDX-License-Identifier: Apache-2.0
"""A relay on this machine: namespaces, real WireGuard, real source NAT, real traffic."""
