# SPDX-License-Identifier: Apache-2.0
"""Source NAT rules and exit pools, read from nftables, iptables or the configuration."""
