"""Which version of modlib this is."""

VERSION = "0.1.0"
