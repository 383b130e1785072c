"""A plugin of pytest: what each test came to, written as it comes, so that a process that ends costs one test.

    RUSTTORCH_RECORD=FILE RUSTTORCH_UNDER=NAME pytest -p recorder ...

Each test is a line when it begins and one when it has ended; what has ended under the name in an earlier process is
left out. Where the device's context is lost, and a test that takes too long, end the process.
"""

import faulthandler
import json
import os
import sys
from pathlib import Path

import pytest

FILE, UNDER = os.environ.get("RUSTTORCH_RECORD"), os.environ.get("RUSTTORCH_UNDER")
SECONDS = float(os.environ.get("RUSTTORCH_TEST_SECONDS", 120))
STDERR = os.dup(2)  # of the process: pytest's capture takes 2
SESSION = ""  # what stands in a test's place in the line of the end


def write(file, **line):
    """In one call to the system, since several processes write to one file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, (json.dumps(line) + "\n").encode())
    os.close(descriptor)


def read(file):
    """{(name, test): its last line}."""
    lines = map(json.loads, Path(file).read_text().splitlines() if Path(file).exists() else ())
    return {(line["under"], line["test"]): line for line in lines}


def record(test, outcome, **more):
    write(FILE, under=UNDER, test=test, outcome=outcome, **more)


def pytest_collectreport(report):
    if not report.passed:
        record(report.nodeid, report.outcome, message=str(report.longrepr)[-1500:])


def pytest_collection_modifyitems(items):
    ended = {test for (under, test), line in read(FILE).items() if under == UNDER and line["outcome"] != "began"}
    items[:] = [item for item in items if item.nodeid not in ended]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    record(item.nodeid, "began")
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report):
    if report.when != "call" and report.passed:
        return
    message = {} if report.passed else {"message": str(report.longrepr)[-1500:]}
    record(report.nodeid, report.outcome, seconds=round(report.duration, 3), **message)
    torch = sys.modules.get("torch")
    if report.failed and torch and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:  # every test from here on would fail
            os.write(STDERR, f"the device's context is lost in {report.nodeid}\n".encode())
            os._exit(1)


def pytest_sessionfinish(exitstatus):
    record(SESSION, "ended", status=int(exitstatus))
