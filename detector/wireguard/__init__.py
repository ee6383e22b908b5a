# SPDX-License-Identifier: Apache-2.0
"""WireGuard peers and their allowed-ips, from kernel and user-space WireGuard; slots and pseudonyms."""
