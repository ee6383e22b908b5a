# SPDX-License-Identifier: Apache-2.0
"""The local socket for people on the relay, and who may ask it."""
