"""Runs the tests of openvino_engine.py in a process of their own.

OpenVINO brings threads and an allocator that share a process with those of torch, OpenCV and ONNX Runtime; after
hundreds of other tests that has ended a test process once. Its users seldom load all of them together.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

TESTS = Path(__file__).with_name("openvino_engine.py")


def test_openvino_engine() -> None:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "failed" not in done.stdout, done.stdout
