"""Run commands in one process, as a notebook's %run: most of a run is the import."""

import runpy
import shlex
import sys

for command in sys.argv[1:]:
    print(f"$ {command}")
    sys.argv = shlex.split(command)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            print("failed:", end.code, file=sys.stderr)
