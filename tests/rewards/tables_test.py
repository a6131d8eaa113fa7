"""Tables read from text and compared with the true ones."""

import pytest

from jaxrl_mm.rewards import tables

CSV = 'name,size,note\nAnn,1.50,"a, b"\nBob,2,\n'
TSV = CSV.replace('"a, b"', "a; b").replace(",", "\t")
JSON = '[{"name": "Ann", "size": 1.5}, {"name": "Bob", "size": 2}]'
BY_NUMBER = '{"0":{"name":"Ann","size":1.5},"1":{"name":"Bob","size":2}}'
LINES = '{"name": "Ann", "size": 1.5}\n{"name": "Bob", "size": null}\n'
MARKDOWN = "| name | size |\n|:---|---:|\n| Ann | 1.5 |\n| Bob | |\n"
HTML = (
  '<table border="1"><thead><tr><th>name</th><th>size</th></tr></thead><tbody>'
  "<tr><td>Ann</td><td>1.5</td></tr><tr><td>B &amp; C</td><td>2</td></tr>"
  "</tbody></table>"
)


@pytest.mark.parametrize(
  "form, truth, text, right",
  [
    ("csv", CSV, CSV, True),
    ("csv", CSV, 'size,name,note\n1.5,Ann,"a, b"\n2.0,Bob,NaN', True),
    ("csv", CSV, f"Here is the table:\n\n{CSV}\nIt has two rows.", True),
    ("csv", CSV, f"index,{CSV.replace('Ann', '0,Ann')}", False),
    ("csv", CSV, "index,name,size,note\n0,Ann,1.5,'a b'\n1,Bob,2,", False),
    ("csv", CSV, CSV.replace("\n", "\r\n"), True),
    ("csv", CSV, CSV.replace("Ann", " Ann "), True),
    ("csv", CSV, CSV.replace("Ann", "ann"), False),
    ("csv", CSV, CSV.replace("1.50", "1.5000001"), True),
    ("csv", CSV, CSV.replace("1.50", "1.51"), False),
    ("csv", CSV, "name,size,note\nBob,2,\nAnn,1.50,'a, b'\n", False),
    ("csv", CSV, "name,size,note\nAnn,1.50,\n", False),
    ("csv", CSV, "name,size\nAnn,1.50\nBob,2\n", False),
    ("csv", CSV, TSV, False),
    ("tsv", TSV, TSV, True),
    ("tsv", TSV, TSV.replace("a; b", "a;b"), False),
    ("json", JSON, JSON, True),
    ("json", JSON, BY_NUMBER, True),
    ("json", BY_NUMBER, JSON, True),
    ("json", JSON, f"Sure: {JSON} Done.", True),
    ("json", JSON, '{"schema": {}, "data": ' + JSON + "}", True),
    ("json", JSON, JSON.replace("2", '"2"'), True),
    ("json", JSON, JSON.replace("Bob", "Eve"), False),
    ("json", JSON, "[1, 2]", False),
    ("json", JSON, "{}", False),
    ("json", '[{"a": true}]', '[{"a": "True"}]', True),
    ("jsonl", LINES, LINES, True),
    ("jsonl", LINES, f"```\n{LINES}```", True),
    ("jsonl", LINES, LINES.replace("null", '""'), True),
    ("jsonl", LINES, LINES.replace("null", "0"), False),
    ("jsonl", LINES, '{"name": "Ann", "size": 1.5}', False),
    ("markdown", MARKDOWN, MARKDOWN, True),
    ("markdown", MARKDOWN, "|name|size|\n|-|-|\n|Ann|1.50|\n|Bob||", True),
    ("markdown", MARKDOWN, f"The table:\n{MARKDOWN}\nThat is it.", True),
    ("markdown", MARKDOWN, "name | size\n---|---\nAnn | 1.5\nBob | ", True),
    ("markdown", MARKDOWN, MARKDOWN.replace("Bob", "Eve"), False),
    ("html", HTML, HTML, True),
    ("html", HTML, f"<html><body><p>It</p>{HTML}</body></html>", True),
    ("html", HTML, HTML.replace("th>", "td>").replace("tbody", "b"), True),
    ("html", HTML, HTML.replace("&amp;", "&"), True),
    ("html", HTML, HTML.replace("Ann", "Eve"), False),
    ("html", HTML, "", False),
    *((form, CSV, "", False) for form in tables.FORMS),
  ],
)
def test_equal(form, truth, text, right):
  assert tables.equal(text, truth, form) == right


def test_a_number_of_rows_without_end_is_no_table():
  assert tables.read("a,b\n" + "1,2\n" * 300_000, "csv") is None


def test_cells():
  assert tables.read('{"a": " x", "b": "1e1", "c": null, "index": 0}', "json")[
    0
  ] == {"a": "x", "b": 10.0, "c": None}
