# SPDX-License-Identifier: Apache-2.0
"""Exit codes, one-line errors, JSON without NaN, tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from port_deploy.cli import common
from port_deploy.errors import InputError, VerificationError


@pytest.mark.parametrize(("error", "code"), [(InputError("a\nb"), 2), (VerificationError("far"), 1)])
def test_deliberate_errors_are_one_line(error, code, capsys):
    def body(argv):
        raise error

    assert common.run(body, []) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    def body(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        common.run(body, [])


def test_interruption_has_its_own_code(capsys):
    def body(argv):
        raise KeyboardInterrupt

    assert common.run(body, []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_unknown_option_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        common.Parser(prog="port-x").parse_args(["--nonsense"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_json_has_no_nan(capsys):
    common.print_json({"a": np.float32("nan"), "b": [np.int64(3), float("inf")], "c": np.arange(2)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [3, None], "c": [0, 1]}


def test_table_aligns_numbers_right_and_text_left():
    lines = common.table([["ab", 1.5], ["c", 10.25]], ["name", "px"]).splitlines()
    assert lines[2] == "ab      1.5"
    assert lines[3] == "c     10.25"
