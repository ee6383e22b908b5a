# SPDX-License-Identifier: Apache-2.0
"""From counts to a verdict: pure functions over columns, no I/O, no clock, no globals."""
