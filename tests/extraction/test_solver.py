"""The solver says nothing on standard output, which is somebody else's."""

import subprocess
import sys

CODE = """
import os, sys, threading
from eqsat_extraction._solver import solver
print("before")
sys.stdout.flush()
{}
print("after")
"""
ALONE = "highs = solver(presolve='off'); highs.addVar(0, 1); highs.run()"
TOGETHER = """
threads = [threading.Thread(target=solver) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def printed(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE.format(code)], capture_output=True, text=True, check=True
    ).stdout


def test_it_prints_nothing() -> None:
    assert printed(ALONE).split() == ["before", "after"]


def test_many_threads_leave_standard_output_as_it_was() -> None:
    assert printed(TOGETHER).split() == ["before", "after"]


def test_without_standard_output_it_works() -> None:
    code = "os.close(1)\nsolver()\nsys.stdout = None\nassert not os.path.exists('/proc/self/fd/1')"
    assert printed(f"{code}\nprint = lambda *_: None").split() == ["before"]
