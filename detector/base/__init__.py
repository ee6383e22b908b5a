# SPDX-License-Identifier: Apache-2.0
"""Words that every room uses: standard library alone, no input or output."""
