"""What the bench workers share: one JSON command a line on stdin, one JSON answer a line on stdout. See compare.py."""

import json
import resource
import sys
from collections.abc import Callable


def serve(version: str, commands: dict[str, Callable[[dict], float]]) -> None:
    """Answer until stdin ends. A command that fails or is not there answers null and says why on stderr."""
    commands = {"memory": lambda command: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **commands}
    print(json.dumps({"ready": version}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            value = commands[command["do"]](command) if command["do"] in commands else None
        except Exception as error:  # a peer may fail in any way; the others go on
            print(f"{version}: {command['do']}: {error}", file=sys.stderr)
            value = None
        print(json.dumps({"value": value}), flush=True)
