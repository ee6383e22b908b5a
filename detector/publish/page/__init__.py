# SPDX-License-Identifier: Apache-2.0
"""The status page: plain HTML from one snapshot, no scripts, nothing loaded from elsewhere."""
