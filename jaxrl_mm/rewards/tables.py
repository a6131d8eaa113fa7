"""Tables in the forms that people write them in, compared cell by cell.

LiveBench asks for such conversions (https://arxiv.org/abs/2406.19314); its
released grader compares what a library of data frames makes of both texts.
"""

import csv
import html.parser
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

Cell = float | str | None
Row = dict[str, Cell]

_LONGEST = 1_000_000
# What data frames take for nothing.
_NOTHING = {"", "#n/a", "n/a", "na", "<na>", "nan", "none", "null"}


def equal(text: str, truth: str, form: str) -> bool:
  """Whether a text holds the true table, of the same form.

  Rows have an order and columns have none; spaces around cells and the last
  digits of numbers do not count, and neither does a column named "index".

  Args:
    text: a table, with words around it or not.
    truth: a table.
    form: of both, of `FORMS`.
  """
  true = read(truth, form)
  said = read(text, form, tuple(true[0]) if true else ())
  return bool(true) and said is not None and _same(said, true)


def read(text: str, form: str, header: Sequence[str] = ()) -> list[Row] | None:
  """Rows of the first table of a text; None where there is none.

  Args:
    text: of at most a million characters.
    form: of `FORMS`.
    header: the columns to look for, where other lines could be a header too.
  """
  if len(text) > _LONGEST:
    return None
  try:
    records = FORMS[form](text.strip(), header)
    return [_row(record) for record in records] or None
  except (ValueError, TypeError, csv.Error, RecursionError):
    return None


def _row(record: dict) -> Row:
  cells = {str(key).strip(): _cell(value) for key, value in record.items()}
  cells.pop("index", None)
  return cells


def _cell(value: Any) -> Cell:
  """A number where it can be read as one; truth values in small letters."""
  text = "" if value is None else str(value).strip()
  if text.lower() in _NOTHING:
    return None
  try:
    return float(text)
  except ValueError:
    return text.lower() if text.lower() in ("true", "false") else text


def _same(left: Sequence[Row], right: Sequence[Row]) -> bool:
  return len(left) == len(right) and all(
    a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    for a, b in zip(left, right)
  )


def _close(left: Cell, right: Cell) -> bool:
  if isinstance(left, float) and isinstance(right, float):
    return left == right or math.isclose(left, right, rel_tol=0, abs_tol=1e-6)
  return left == right


# ------------------------------------------------- text, header -> records
def _json(text: str, header: Sequence[str]) -> list[dict]:
  """A list of records, records by their number, or those under "data"."""
  start = min((i for c in "[{" if (i := text.find(c)) >= 0), default=0)
  end = max(text.rfind(c) for c in "]}") + 1
  try:
    found = json.loads(text[start:end])
  except ValueError:
    return _json_lines(text, header)
  if isinstance(found, dict) and isinstance(found.get("data"), list):
    found = found["data"]
  rows = list(found.values()) if isinstance(found, dict) else found
  if isinstance(found, dict) and not any(isinstance(r, dict) for r in rows):
    return [found]
  if not all(isinstance(row, dict) for row in rows):
    raise ValueError("not a list of records")
  return rows


def _json_lines(text: str, header: Sequence[str]) -> list[dict]:
  del header
  lines = [line.strip() for line in text.split("\n")]
  return [json.loads(x) for x in lines if x[:1] == "{" and x[-1:] == "}"]


def _separated(mark: str) -> Callable[[str, Sequence[str]], list[dict]]:
  def read(text: str, header: Sequence[str]) -> list[dict]:
    return _below(list(csv.reader(text.splitlines(), delimiter=mark)), header)

  return read


def _markdown(text: str, header: Sequence[str]) -> list[dict]:
  lines = [line.strip() for line in text.split("\n") if "|" in line]
  rule = next((line for line in lines if {*line} <= {*"|:- "}), None)
  # The marks at both ends of a line are left out together.
  inner = [
    line[1:].removesuffix("|") if line[0] == "|" else line
    for line in lines
    if line is not rule
  ]
  return _below([line.split("|") for line in inner], header)


def _below(rows: list[list[str]], header: Sequence[str]) -> list[dict]:
  """Records of the rows behind the header, as long as they have its length."""
  names = lambda row: [name.strip() for name in row]
  wanted = lambda row: {*names(row)} - {"index"} == {*header}
  first = next((i for i, row in enumerate(rows) if header and wanted(row)), 0)
  columns, found = names(rows[first]) if rows else [], []
  for row in rows[first + 1 :]:
    if len(row) != len(columns):
      break
    found.append(dict(zip(columns, row)))
  return found


class _Html(html.parser.HTMLParser):
  """Cells of all rows of a page."""

  def __init__(self):
    super().__init__()
    self.rows, self.inside = [], False

  def handle_starttag(self, tag, attrs):
    if tag == "tr":
      self.rows.append([])
    self.inside = tag in ("td", "th") and bool(self.rows)
    if self.inside:
      self.rows[-1].append("")

  def handle_endtag(self, tag):
    self.inside = self.inside and tag not in ("td", "th", "tr")

  def handle_data(self, data):
    if self.inside:
      self.rows[-1][-1] += data


def _html(text: str, header: Sequence[str]) -> list[dict]:
  parser = _Html()
  parser.feed(text[max(text.find("<table"), 0) :])
  parser.close()
  return _below([row for row in parser.rows if row], header)


FORMS: dict[str, Callable[[str, Sequence[str]], list[dict]]] = {
  "json": _json,
  "jsonl": _json_lines,
  "csv": _separated(","),
  "tsv": _separated("\t"),
  "markdown": _markdown,
  "html": _html,
}
