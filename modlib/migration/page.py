"""The table of components as a page: docs/migrating.md."""

from __future__ import annotations

from modlib.migration.rows import ALIASES, NO_COUNTERPART, ROWS, Dropped, Param, Row

BEGIN = """# From Modalities

`modlib migrate CONFIG.yaml OUT.gin` writes a gin file that trains as a training config of Modalities does. Behind each
value is the line that it comes from. What is different here, or has no counterpart, is listed with the reason, on the
terminal and at the top of the file. It needs `pip install 'modlib[migrate]'`. Then:

    modlib data convert train.pbin train.packed --from modalities --tokenizer FOLDER
    modlib train --gin_file OUT.gin --dry_run

Machines are not in the file: processes are `Local.num_processes`, a cluster is its site's profile.

| Modalities | modlib | fields |
|---|---|---|
"""


def page() -> str:
    """The page, from the rows."""
    lines = [
        f"| `{kind}` | {f'`{row.gin}`' if row.gin else 'no binding'} | {_fields(row)} |" for kind, row in ROWS.items()
    ]
    lines += [f"| `{old}` | as `{new}` | |" for old, new in ALIASES.items()]
    lines += [f"| `{kind}` | nothing to set | {why} |" for kind, why in NO_COUNTERPART.items()]
    return BEGIN + "\n".join(lines) + "\n"


def _fields(row: Row) -> str:
    told = [f"`{name}` is `{rule.name}`{_note(rule)}" for name, rule in row.fields.items() if isinstance(rule, Param)]
    told += [f"`{name}`: {rule.why}" for name, rule in row.fields.items() if isinstance(rule, Dropped) and rule.why]
    return "; ".join([*told, *([row.note] if row.note else [])])


def _note(rule: Param) -> str:
    return f" ({rule.note})" if rule.note else ""
