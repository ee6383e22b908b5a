# SPDX-License-Identifier: Apache-2.0
"""`exitprint doctor`: checks of this host, each with its exact mend."""
