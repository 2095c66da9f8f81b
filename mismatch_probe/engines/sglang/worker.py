"""The worker process of the engine `sglang`, run by the interpreter that has SGLang.

SGLang's child processes import this module again, so what has to be prepared is prepared on import.
"""

from __future__ import annotations

import sys

from mismatch_probe.engines.sglang.cpu_imports import prepare_imports

prepare_imports()

if __name__ == "__main__":
    from mismatch_probe.stages.worker import main

    sys.exit(main(sys.argv[1:]))
