"""Tables: what a number looks like."""

from common import table


def test_numbers_have_three_digits():
    row = {"name": "a", "count": 12345, "small": 0.00123456, "large": 98765.4, "round": 999.7}
    assert table.heading(row) == (
        "| name | count | small | large | round |\n| --- | --- | --- | --- | --- |"
    )
    assert table.line(row) == "| a | 12345 | 0.00123 | 98765 | 1000 |"
