# SPDX-License-Identifier: Apache-2.0
"""``python -m detector`` is the command ``exitprint``."""

from detector.cli import main

main(prog_name="exitprint")
