# SPDX-License-Identifier: Apache-2.0
"""Counts by pair over a window, and the observation that is made of them."""
