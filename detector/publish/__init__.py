# SPDX-License-Identifier: Apache-2.0
"""From one snapshot of the service to what people and machines read."""
