"""What modlib makes of tokenizers, chat templates and architectures, each found by running: docs/compatibility.md."""
