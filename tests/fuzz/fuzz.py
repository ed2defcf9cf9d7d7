"""Fuzz one promise with atheris until its time is over: fuzz.py <module> <promise> <seconds>.

What breaks it is written to the working folder and named; make an ordinary test of it.
"""

import importlib
import sys

import atheris

# What guides the fuzzer.
INSTRUMENTED = ["gatehouse_auth", "gatehouse_bridge"]


def main() -> None:
    module, name, seconds = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        promise = importlib.import_module(module).PROMISES[name]
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options], promise)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
