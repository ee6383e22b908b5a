# SPDX-License-Identifier: Apache-2.0
"""What the person on call asks a running service, and how its answers read."""
