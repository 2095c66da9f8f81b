"""SGLang's server, run by the interpreter that has SGLang: `python -m mismatch_probe.engines.sglang.serve ARGUMENTS.json`.

The arguments are fields of SGLang's `ServerArgs`. The key comes in the environment and stands on no command line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mismatch_probe.engines.sglang.cpu_imports import prepare_imports
from mismatch_probe.engines.sglang.interpreter import SERVER_KEY_VARIABLE

prepare_imports()

if __name__ == "__main__":
    from mismatch_probe.process_lifetime import die_with_parent

    die_with_parent()
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import ServerArgs

    arguments = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    launch_server(ServerArgs(**arguments, api_key=os.environ[SERVER_KEY_VARIABLE]))
