"""Make docs/api.md from the docstrings and signatures of the public names.

    python docs/make_api.py

A test asserts that the page is what this makes.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path

import pulse_jax

PAGE = Path(__file__).parent / "api.md"
HEAD = """# The public names

This page is made from the docstrings by `python docs/make_api.py`. All names are in `pulse_jax`.
"""


def page():
    """The text of docs/api.md."""
    values = {name: getattr(pulse_jax, name) for name in pulse_jax.__all__}
    tables = {name: value for name, value in values.items() if isinstance(value, dict | tuple)}
    modules = {name: value for name, value in values.items() if inspect.ismodule(value)}
    others = sorted(values.keys() - tables.keys() - modules.keys(), key=str.lower)
    parts = [HEAD, "## Functions and types\n"]
    for name in others:
        parts.append(f"### `{name}`\n\n{definition(values[name])}\n{prose(values[name])}")
    parts += ["## Settings\n", settings(), "## Parts by name\n"]
    for name, table in tables.items():
        parts.append(f"### `{name}`\n\n{entries(table)}")
    parts.append("## Modules\n")
    for name, module in modules.items():
        parts.append(f"### `{name}`\n\n{prose(module)}\n{members(module)}")
    return "\n".join(parts)


def definition(value):
    """The source of a signature, or of a type's fields, as a block of code."""
    value = inspect.unwrap(value)
    source = textwrap.dedent(inspect.getsource(value))
    (node,) = ast.parse(source).body
    lines = source.splitlines()
    first = node.body[0]
    head = lines[node.lineno - 1 : first.lineno - 1] or [lines[node.lineno - 1]]
    if isinstance(node, ast.ClassDef) and value is not pulse_jax.Settings:
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                head += lines[field.lineno - 1 : field.end_lineno]
    code = "\n".join(line.rstrip() for line in head if line.strip())
    return f"```text\n{code}\n```\n"


def prose(value):
    """A docstring as Markdown, whose own signs outside of code are escaped."""
    parts = re.split(r"(`[^`]*`|\n\n(?: {4}.*\n)+)", inspect.getdoc(value) or "")
    escaped = (re.sub(r"([*_<|])", r"\\\1", part) for part in parts[::2])
    code = [*parts[1::2], ""]
    return "".join(part for pair in zip(escaped, code, strict=True) for part in pair) + "\n"


def settings():
    """A table of all settings, with what the command's help says of them."""
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    defaults = pulse_jax.Settings().as_json()
    for field in dataclasses.fields(pulse_jax.Settings):
        told, choices = field.metadata["told"], field.metadata["choices"]
        if not all(choice in told for choice in choices):
            told += f" The choices are {', '.join(choices)}."
        told = re.sub(r"([*<|])", r"\\\1", told)
        default = "" if defaults[field.name] is None else f"`{defaults[field.name]}`"
        rows.append(f"| `{field.name}` | {default} | {told} |")
    return "\n".join(rows) + "\n"


def entries(table):
    """A table of names; with the first lines of docstrings, where it is functions of ours."""
    rows = ["| name | what it is |", "|---|---|"]
    for name in table:
        value = table[name] if isinstance(table, dict) else None
        ours = getattr(value, "__module__", "").startswith("pulse_jax.") and callable(value)
        rows.append(f"| `{name}` | {first_line(value) if ours else ''} |")
    if all(row.endswith("|  |") for row in rows[2:]):
        return ", ".join(f"`{name}`" for name in table) + "\n"
    return "\n".join(rows) + "\n"


def members(module):
    """A table of a module's own public functions and types."""
    rows = ["| name | what it is |", "|---|---|"]
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if own and callable(value) and not name.startswith("_") and inspect.getdoc(value):
            rows.append(f"| `{name}` | {first_line(value)} |")
    return "\n".join(rows) + "\n"


def first_line(value):
    return prose(value).split("\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
