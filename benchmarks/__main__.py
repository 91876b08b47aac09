"""The benchmarks, one after the other, each in a process of its own: `./run bench`.

It takes about 30 minutes on two cores, and with ``--quick`` about two. With the name of one
only that is run, and the options are its own: `./run bench rotation --help`. The exit status
says whether they ran, not whether bars were met.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from report import Bar, arguments, bars_table, say, show

TOGETHER = ("rotation", "overhead", "audit", "costs")
BY_NAME = ("big",)  # five thousand workflows take long


def program(name: str, options: list[str], *, silent: bool = False) -> int:
    """Run one benchmark; gives its exit status."""
    command = [sys.executable, Path(__file__).with_name(f"{name}.py"), *options]
    return subprocess.run(command, stdout=subprocess.DEVNULL if silent else None).returncode


def main() -> int:
    if sys.argv[1:] and sys.argv[1] in (*TOGETHER, *BY_NAME):
        return program(sys.argv[1], sys.argv[2:])
    parser = arguments(__doc__)
    parser.epilog = f"One of them: ./run bench {'|'.join((*TOGETHER, *BY_NAME))} [options …]"
    args = parser.parse_args()
    documents: dict[str, object] = {}
    bars: list[Bar] = []
    for name in TOGETHER:
        say(f"{name} …")
        options = ["--out", str(args.out), *(["--quick"] if args.quick else [])]
        status = program(name, options, silent=args.json)
        if status != 0:
            return status
        document = json.loads((args.out / f"{name}.json").read_text("utf-8"))
        documents[name] = document
        bars += [Bar(bar["what"], bar["figure"], bar["limit"]) for bar in document["bars"]]
    if args.json:
        print(json.dumps(documents))
    else:
        show([bars_table(bars)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
