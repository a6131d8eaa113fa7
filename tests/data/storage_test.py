import json
import pickle

import pyarrow
import pytest
from array_record.python import array_record_module
from pyarrow import parquet

from jaxrl_mm.data import storage
from jaxrl_mm.errors import InputError

RECORDS = [{"a": i, "b": "é" * i} for i in range(7)]


def _lines(path):
  path.write_text("\n".join(json.dumps(r) for r in RECORDS), encoding="utf-8")


def _list(path):
  path.write_text(" " + json.dumps(RECORDS))


def _parquet(path):
  parquet.write_table(
    pyarrow.Table.from_pylist(RECORDS), path, row_group_size=3
  )


def _array_record(path):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in RECORDS:
    writer.write(json.dumps(record).encode())
  writer.close()


WRITERS = {
  "x.jsonl": _lines,
  "lines.json": _lines,
  "list.json": _list,
  "x.parquet": _parquet,
  "x.array_record": _array_record,
}


@pytest.mark.parametrize("name", WRITERS)
def test_records_are_read_in_any_order(tmp_path, name):
  WRITERS[name](tmp_path / name)
  rows = storage.open_files([tmp_path / name])
  assert len(rows) == 7
  for number in (6, 0, 3, 2, 6):
    assert rows[number] == RECORDS[number]
  assert [r["a"] for r in rows.scan(["a"])] == list(range(7))
  assert rows.name(2) == f"{tmp_path / name}:3"


def test_files_of_several_kinds_follow_each_other(tmp_path):
  for name, write in WRITERS.items():
    write(tmp_path / name)
  rows = storage.open_files([tmp_path / name for name in WRITERS])
  assert [rows[i] for i in range(len(rows))] == 5 * RECORDS
  assert rows.name(7) == f"{tmp_path / 'lines.json'}:1"


def test_what_is_kept_can_be_sent_to_another_process(tmp_path):
  for name, write in WRITERS.items():
    write(tmp_path / name)
  rows = storage.open_files([tmp_path / name for name in WRITERS])
  [rows[i] for i in range(len(rows))]  # files are open now
  sent = pickle.loads(pickle.dumps(rows))
  assert [sent[i] for i in range(len(sent))] == 5 * RECORDS


def test_blank_lines_are_no_records(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b'\n{"a": 1}\r\n\r\n\n{"a": 2}\n\n')
  rows = storage.open_files([path])
  assert [rows[i] for i in range(len(rows))] == [{"a": 1}, {"a": 2}]


def test_lines_are_found_across_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(storage, "_SCAN_BYTES", 5)
  _lines(tmp_path / "x.jsonl")
  rows = storage.open_files([tmp_path / "x.jsonl"])
  assert [rows[i] for i in range(len(rows))] == RECORDS


@pytest.mark.parametrize(
  "line, reason",
  [
    (b"{1}", "x.jsonl:2: cannot be read"),
    (b"[1]", "x.jsonl:2: the record is no object"),
    (b'{"a": "\xff"}', "x.jsonl:2: cannot be read"),
    (b"[" * 100_000, "x.jsonl:2: cannot be read"),
  ],
)
def test_a_bad_line_is_named_when_it_is_read(tmp_path, line, reason):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
  rows = storage.open_files([path])
  assert rows[0] == {"a": 1} and rows[2] == {"a": 3}
  with pytest.raises(InputError, match=reason):
    rows[1]
  assert len(list(rows.scan(["a"]))) == 3


@pytest.mark.parametrize(
  "name", ["x.parquet", "list.json", "x.array_record", "gone.jsonl", "x.pkl"]
)
def test_a_file_that_cannot_be_opened_is_named(tmp_path, name):
  if name != "gone.jsonl":
    (tmp_path / name).write_bytes(b"[garbage")
  with pytest.raises(InputError, match=name):
    storage.open_files([tmp_path / name])


def test_a_damaged_part_of_a_parquet_file_spoils_its_records_alone(tmp_path):
  path = tmp_path / "x.parquet"
  records = [{"a": str(i) * 200} for i in range(4)]
  parquet.write_table(
    pyarrow.Table.from_pylist(records), path, row_group_size=2
  )
  content = bytearray(path.read_bytes())
  content[10:40] = bytes(30 * [255])
  path.write_bytes(content)
  rows = storage.open_files([path])
  assert rows[3] == records[3]
  with pytest.raises(InputError, match="x.parquet:1: cannot be read"):
    rows[0]
