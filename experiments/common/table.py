"""Tables in Markdown, whose rows are dicts with the same keys."""


def heading(row):
    """The lines above the rows, of which this is one."""
    return _line(row) + "\n" + _line(["---"] * len(row))


def line(row):
    """A row. Floats have three digits, or all that are before the point."""

    def text(value):
        if not isinstance(value, float):
            return str(value)
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"

    return _line(map(text, row.values()))


def _line(cells):
    return f"| {' | '.join(cells)} |"
