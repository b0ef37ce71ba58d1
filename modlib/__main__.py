"""`python -m modlib`: the same as the command `modlib`."""

from modlib.cli.main import main

if __name__ == "__main__":
    main()
