# SPDX-License-Identifier: Apache-2.0
"""Exit codes, one-line errors, JSON without NaN, tables: port_deploy/cli/common.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from port_deploy.cli import common
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError, VerificationError


def body_that(error):
    def body(argv):
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("expected a, got b:\n  use c"), 2),
        (ModelFileError("x"), 2),
        (BackendUnavailableError("x"), 2),
        (VerificationError("far"), 1),
    ],
)
def test_deliberate_errors_are_one_line(error, code, capsys):
    assert common.run(body_that(error), []) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: " + " ".join(str(error).split()) + "\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        common.run(body_that(ZeroDivisionError()), [])


def test_an_operating_system_error_that_nobody_foresaw_is_a_bug():
    with pytest.raises(PermissionError):
        common.run(body_that(PermissionError(13, "no")), [])


def test_interruption_has_its_own_code(capsys):
    assert common.run(body_that(KeyboardInterrupt()), []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_arguments_and_code_pass_through():
    seen = []
    assert common.run(lambda argv: seen.extend(argv) or 1, ["a", "b"]) == 1
    assert seen == ["a", "b"]


def parse(argv):
    parser = common.Parser(prog="port-x", description="Does x.")
    parser.add_argument("--batch", type=int)
    parser.parse_args(argv)
    return 0


@pytest.mark.parametrize("argv", [["--nonsense"], ["--batch", "two"], ["--bat", "2"], ["surplus"]])
def test_a_wrong_option_is_one_line_and_code_2(argv, capsys):
    assert common.run(parse, argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("argv", "text"), [(["--help"], "usage: port-x"), (["--version"], "port-deploy ")])
def test_help_and_version_are_code_0(argv, text, capsys):
    assert common.run(parse, argv) == 0
    assert capsys.readouterr().out.startswith(text)


def process_of(body, stdout):
    code = f"import sys\nfrom port_deploy.cli.common import run\nsys.exit(run(lambda argv: {body}, []))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_closed_pipe_is_quiet():
    with process_of("[print('x' * 99) for _ in range(9999)] and 0", subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_a_full_disk_is_one_line_and_code_2():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with full.open("w") as file, process_of("print('x') or 0", file) as process:
        err = process.stderr.read()
        assert process.wait() == 2
    assert err.startswith("error: no space left")
    assert err.count("\n") == 1


def test_json_has_no_nan(capsys):
    common.print_json(
        {"a": np.float32("nan"), "b": [np.int64(3), float("inf")], "c": np.arange(2), 4: (True, None), "p": Path("x")}
    )
    expected = {"a": None, "b": [3, None], "c": [0, 1], "4": [True, None], "p": "x"}
    assert json.loads(capsys.readouterr().out) == expected


def test_table_aligns_numbers_right_and_text_left():
    lines = common.table([["ab", 1.5], ["c", 10.25], ["d", None]], ["name", "px"]).splitlines()
    assert lines[2] == "ab      1.5"
    assert lines[3] == "c     10.25"
    assert lines[4] == "d         –"


def test_track_goes_through_everything_and_keeps_logs_clean(capsys):
    assert list(common.track([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
