# SPDX-License-Identifier: Apache-2.0
"""The pages and metrics over HTTP, and who may read them."""
