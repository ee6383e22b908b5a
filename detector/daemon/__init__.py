# SPDX-License-Identifier: Apache-2.0
"""The running service: sensor, aggregator, what lies between them, and what people see."""
