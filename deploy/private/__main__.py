# SPDX-License-Identifier: Apache-2.0
"""Runs a module of the code beside this file: ``python3 -I FOLDER MODULE [ARGUMENT...]``.

For installations in a folder that Python does not search, such as /usr/share/exitprint; see
`detector.base.interpreter`.
"""

import runpy
import sys

if __name__ == "__main__":
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
