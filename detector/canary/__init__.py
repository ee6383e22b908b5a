# SPDX-License-Identifier: Apache-2.0
"""The outside measure: an operator's own canaries, through every relay of a fleet, to its own reflector."""
