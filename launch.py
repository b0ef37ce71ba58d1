"""The command of every day: read the flags, check everything, then train here."""

from modlib.cli.launch import main

if __name__ == "__main__":
    main()
