# SPDX-License-Identifier: Apache-2.0
"""`exitprint analyze`: the verdict from what conntrack prints, with no root and no eBPF."""
