# SPDX-License-Identifier: Apache-2.0
"""``port-export --check``: a table of what was looked at, or JSON; exit code 1 where the export would fail.

May use: export, cli.common. Test: tests/test_preflight.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from port_deploy.cli import common
from port_deploy.export import ExportOptions
from port_deploy.export.preflight import check_export, failed
from port_deploy.export.preflight_graph import Finding

SIGNS = {"ok": "✓", "note": "·", "error": "✗"}


def check(source: str | None, folder: str, options: ExportOptions, json: bool) -> int:
    """Run the checks and print them; returns the exit code."""
    findings = check_export(source, folder, options)
    if json:
        common.print_json({"passed": not failed(findings), "findings": [asdict(f) for f in findings]})
    else:
        print(_text(findings))
    return int(failed(findings))


def _text(findings: Sequence[Finding]) -> str:
    width = max(len(f.check) for f in findings)
    lines = [f"{SIGNS[f.status]} {f.check:<{width}}  {f.text}" for f in findings]
    bad = sum(f.status == "error" for f in findings)
    lines.append("nothing stands in the way" if not bad else f"{bad} of {len(findings)} checks found what would fail")
    return "\n".join(lines)
