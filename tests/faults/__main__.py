"""All storms at full size: ``python -m tests.faults [NAME …] [--database URL] [--seed N]``.

A NAME is a part of a module's: kills, stops, poison, starved, clocks, restarts, network, churn,
failover, deploy, statements, threads, push. Without a database it is SQLite; on each database those
storms run that concern it.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py"))


def main() -> None:
    """Hand over to the test runner."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=str(NAMES))
    parser.add_argument("--database", metavar="URL")
    parser.add_argument("--seed", metavar="N")
    options = parser.parse_args()
    environment = os.environ | {"FAULTS": "full"}
    if options.database:
        environment["TEST_DATABASE"] = options.database
    if options.seed:
        environment["FAULTS_SEED"] = options.seed
    labels = [f"tests.faults.test_{name}" for name in options.names or NAMES]
    os.chdir(ROOT)
    os.execve(
        sys.executable, [sys.executable, "manage.py", "test", "-v", "1", *labels], environment
    )


if __name__ == "__main__":
    main()
