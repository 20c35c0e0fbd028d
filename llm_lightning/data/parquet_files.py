"""Read parquet and Arrow files of any program as tables with plain types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from llm_lightning.data.compression import compression, ending
from llm_lightning.data.rows import take
from llm_lightning.errors import UserError, first_line

AT_ONCE = 1000  # rows


class ColumnarFile:
    """A parquet or Arrow file: its columns with their `datasets` types, and its rows."""

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        """`columns` may name values inside objects, `translation.en`. Raises UserError for a file that cannot be read."""
        self.path, self.kind = path, ending(path).removeprefix(".")
        with path.open("rb") as file:
            self._head = file.read(10)
        if packed := compression(self._head):
            raise UserError(f"{path}: a {self.kind} file in {packed}; decompress it, {self.kind} files are compressed inside.")
        try:
            self._parquet = pq.ParquetFile(path) if self.kind == "parquet" else None
            schema = self._parquet.schema_arrow if self._parquet is not None else self._open_arrow().schema
            stored = datasets.Features.from_arrow_schema(pa.schema([f.with_type(_plain(f.type)) for f in schema], schema.metadata))
        except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
            raise self._error(error) from error
        self.inner = {
            name: feature for name in columns if name not in stored and (feature := _find_inner(stored, name)) is not None
        }
        """Values inside objects, with their types."""
        outer = {name.partition(".")[0] for name in self.inner}
        kinds = {name: feature for name, feature in stored.items() if name not in outer} | self.inner
        self.features: dict[str, Any] = {name: plain_feature(feature) for name, feature in kinds.items()}

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows lazily, with NaN as None. Raises UserError if the file is damaged."""
        nested = [name for name in columns if isinstance(self.features[name], datasets.Json)]
        stored = [name for name in nested if name not in self.inner and _is_json_text(self._schema_type(name))]
        floats = [name for name in columns if getattr(self.features[name], "dtype", "").startswith("float")]
        try:
            for batch in self._batches(list(dict.fromkeys(n.partition(".")[0] if n in self.inner else n for n in columns))):
                for values in batch.to_pylist():
                    row = {name: take(values, name) for name in columns}
                    for name in nested:
                        row[name] = datasets.Json().decode_example(row[name]) if name in stored else without_gaps(row[name])
                    for name in floats:
                        row[name] = row[name] if row[name] == row[name] else None
                    yield row
        except (pa.ArrowException, OSError, ValueError) as error:  # the last: bytes that are not UTF-8
            raise self._error(error) from error

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self._parquet is not None:
            yield from self._parquet.iter_batches(batch_size=AT_ONCE, columns=columns)
            return
        reader = self._open_arrow()
        is_file = isinstance(reader, pa.RecordBatchFileReader)
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader:
            chosen = batch.select(columns)
            yield from (chosen.slice(start, AT_ONCE) for start in range(0, len(chosen), AT_ONCE))

    def _schema_type(self, name: str) -> pa.DataType:
        schema = self._parquet.schema_arrow if self._parquet is not None else self._open_arrow().schema
        return schema.field(name).type

    def _open_arrow(self) -> Any:
        """Open an Arrow file in its stream form, which `datasets` writes, or in its file form, which others write (feather)."""
        mapped = pa.memory_map(str(self.path))
        return pa.ipc.open_file(mapped) if self._head.startswith(b"ARROW1") else pa.ipc.open_stream(mapped)

    def _error(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: cannot be read as {self.kind} ({first_line(error)}).")


def _find_inner(features: Any, name: str) -> Any:
    """Return the type of a value inside objects; None if the objects do not have it."""
    outer, _, rest = name.partition(".")
    if outer not in features or not rest:
        return features.get(name)
    inner = features[outer].flatten() if isinstance(features[outer], datasets.Translation) else features[outer]
    return _find_inner(inner, rest) if isinstance(inner, dict) else None


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values without its encoding in the file: categories, large text, lists of these."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("key", _plain(kind.key_type)), ("value", _plain(kind.item_type))]))
    return kind


def plain_feature(feature: Any) -> Any:
    """Return the type in which a column is kept: JSON for objects and lists of objects, else the type itself."""
    items = getattr(feature, "feature", feature)
    while hasattr(items, "feature"):
        items = items.feature
    if isinstance(items, datasets.Value) and items.dtype in ("large_string", "null"):
        return plain_feature(datasets.Value("string") if items is feature else datasets.List(datasets.Value("string")))
    return feature if isinstance(items, datasets.Value | datasets.ClassLabel) else datasets.Json()


def _is_json_text(kind: pa.DataType) -> bool:
    """Return whether a column keeps its values as JSON in text, as `datasets.Json` does."""
    return isinstance(kind, pa.JsonType) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def without_gaps(value: Any) -> Any:
    """Return a nested value without null keys: a columnar file gives every object the keys of all."""
    if isinstance(value, dict):
        return {key: without_gaps(item) for key, item in value.items() if item is not None}
    return [without_gaps(item) for item in value] if isinstance(value, list) else value
