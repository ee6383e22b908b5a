# SPDX-License-Identifier: Apache-2.0
"""`exitprint simulate`: what an adversary could link over a set of relays, from pool sizes alone."""
