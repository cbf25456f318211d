"""These tests run Triton's interpreter, which must be chosen before Triton is imported: a process of their own.

tests/unit/test_kernels_interpreter.py starts it. By hand: TRITON_INTERPRET=1 pytest tests/interpreter
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
