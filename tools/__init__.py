# SPDX-License-Identifier: Apache-2.0
"""What makes pages, simulated relays, calibration and benches; not shipped."""
