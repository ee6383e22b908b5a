# SPDX-License-Identifier: Apache-2.0
"""`exitprint lab` with the real service and the terminal."""

from __future__ import annotations

from typing import cast

from detector.base.answers import ReportAnswer
from detector.lab.command import lab_command
from detector.lab.service import start_service
from detector.terminal import show_report

lab = lab_command(start_service, lambda report: show_report(cast(ReportAnswer, report)))
