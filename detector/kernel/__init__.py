# SPDX-License-Identifier: Apache-2.0
"""The eBPF program: struct layouts from BTF, loading, attaching, and reading its tables."""
