"""The command of every day: read the flags, check everything, then train here."""

from modlib.runtime.signals import answered

if __name__ == "__main__":
    with answered():  # before the imports, which take their time
        from modlib.cli.start.launch import main

        main()
