# SPDX-License-Identifier: Apache-2.0
"""The configuration: from YAML to values that every process holds."""
