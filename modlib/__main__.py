"""`modlib`, also as `python -m modlib`."""

import sys
from contextlib import nullcontext

from modlib.runtime.signals import answered


def main() -> None:
    """Entry point of the console command `modlib`."""
    # training answers signals from its first moment, before the imports, which take their time
    with answered() if sys.argv[1:2] == ["train"] else nullcontext():
        from modlib.cli.main import main as run

        run()


if __name__ == "__main__":
    main()
