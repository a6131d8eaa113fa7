"""Files as the hub has them, and what is wrong with others."""

import importlib
import json

import pytest
from PIL import Image

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import records

ROWS = [{"id": "1", "n": 2}, {"id": "two\u2028lines", "n": 3}]


def test_lists_lines_and_csv_are_the_same(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps(ROWS))
  lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS)
  (tmp_path / "b.jsonl").write_text(lines, encoding="utf-8")
  (tmp_path / "c.csv").write_text('id,n\n1,2\n"two\nlines",3\n')
  for name in ("a.json", "b.jsonl"):
    read = records.read_file(tmp_path / name)
    assert [r.values for r in read] == ROWS
    assert read[1].where == f"{tmp_path / name}:2"
  third = records.read_file(tmp_path / "c.csv")
  assert [r.values["id"] for r in third] == ["1", "two\nlines"]
  # JSON lines go before JSON, and nothing else is read beside them.
  assert len(records.read(tmp_path)) == 2


def test_parquet(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = importlib.import_module("pyarrow.parquet")
  (tmp_path / "sub").mkdir()
  for name in ("b", "a"):
    table = pyarrow.Table.from_pylist([{"id": name, "image": {"bytes": b"x"}}])
    parquet.write_table(table, tmp_path / "sub" / f"{name}.parquet")
  read = records.read(tmp_path)
  assert [r.values["id"] for r in read] == ["a", "b"]
  assert records.pictures(tmp_path, read[0], ["image", "none"]) == (b"x",)
  (tmp_path / "sub" / "a.parquet").write_bytes(b"no parquet")
  with pytest.raises(InputError, match="a.parquet"):
    records.read(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
  def missing(name):
    raise ModuleNotFoundError(name)

  (tmp_path / "a.parquet").write_bytes(b"")
  monkeypatch.setattr(records.importlib, "import_module", missing)
  with pytest.raises(InputError, match="benchmarks"):
    records.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"\n'])
def test_what_is_no_record(tmp_path, text):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(InputError, match="a.json"):
    records.read(tmp_path)


def test_nothing_there(tmp_path):
  with pytest.raises(InputError, match="no parquet or JSON"):
    records.read(tmp_path)
  with pytest.raises(InputError, match="x.json"):
    records.read_file(tmp_path / "x.json")


def test_fields_and_pictures(tmp_path):
  Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
  record = records.Record("f:3", {"n": 2, "image": "a.png"}, tmp_path)
  assert records.get(record, "n", int) == 2
  with pytest.raises(InputError, match="f:3: 'n' is int and has to be str"):
    records.get(record, "n", str)
  assert records.pictures(tmp_path, record, ["image"]) == (tmp_path / "a.png",)
  with pytest.raises(InputError, match="f:3: the picture"):
    records.pictures(tmp_path / "sub", record, ["image"])
