"""Datong as a bench worker: one JSON command a line on stdin, one JSON answer a line on stdout. See compare.py."""

import json
import resource
import sys

import datong


def main() -> None:
    path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    model = datong.load(path, threads=threads, context=context)
    print(json.dumps({"ready": f"datong {datong.__version__}"}), flush=True)
    run = 0
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "memory":
            value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        else:
            run += 1  # another first token each time, so that no prefix is found in the cache
            ids = [100 + run, *command["ids"][1:]]
            tokens = command.get("tokens", 0) + 1
            timings = model.generate(ids, max_tokens=tokens, ignore_eos=True).timings
            value = timings.decode_rate if command["do"] == "decode" else timings.prefill_rate
        print(json.dumps({"value": value}), flush=True)


if __name__ == "__main__":
    main()
