# SPDX-License-Identifier: Apache-2.0
"""Measures backends side by side: verified first, in short alternating blocks, each in a process of its own.

`suite.measure` runs a `plan.Plan` and answers plain data for JSON; `report` turns that into tables. The folder
benchmarks/ stores it and renders the README from it. Test: tests/test_bench.py.
"""

from port_deploy.bench.plan import Plan
from port_deploy.bench.report import markdown
from port_deploy.bench.report_cuda import markdown_cuda
from port_deploy.bench.suite import measure

__all__ = ["Plan", "markdown", "markdown_cuda", "measure"]
