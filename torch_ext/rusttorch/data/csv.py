"""read_csv: the file's bytes, the caller's words for columns, and errors. What is done for each byte is C++."""

import gzip
import mmap
import operator
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from .. import _C

_data = _C.data
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.bool)
_ALL = 2**62  # rows: more than there are
_PART = 1 << 18  # bytes that a thread takes at a time
_BLOCK = 1 << 25  # bytes that are decompressed at a time
_BOM, _GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"


Dtype: TypeAlias = torch.dtype | str | Sequence[str]


class Table(NamedTuple):
    """What read_csv returns."""

    values: torch.Tensor | dict[str | int, torch.Tensor]  # [rows, columns], or of each column its [rows]
    columns: tuple[str | int, ...]  # their names, or their numbers in a file without a header
    vocabularies: dict[str | int, list[str]]  # of each column of categories: the string that each code stands for


def read_csv(
    path: str | os.PathLike,
    *,
    delimiter: str = ",",
    quotechar: str | None = '"',
    comment: str | None = None,
    header: bool | Sequence[str] = True,
    usecols: Iterable[str | int] | None = None,
    dtype: Dtype | Mapping[str | int, Dtype] | None = None,
    na_values: str | Iterable[str] = (),
    rows: tuple[int, int | None] = (0, None),
    chunk_rows: int | None = None,
) -> Any:
    """Reads a file of comma-separated values into tensors, by as many threads as torch has.

    path: a file, which may be compressed by gzip (it is looked into, its name does not matter). Text is UTF-8, with or
        without a byte order mark; lines end with LF or CRLF.
    delimiter, quotechar, comment: one ASCII character each. Fields are those of Python's csv module with strict=True:
        one that begins with a quote ends with one, and a doubled quote within stands for one. quotechar=None: quotes
        are characters like others. comment=None: there are no comments; else what follows the character, outside
        quotes, up to the line's end is not read; blanks before it are the field's. Empty lines, and those that are but
        a comment, are no rows.
    header: True: the first record has the columns' names. False: there is none, and columns go by their numbers, from
        0. A sequence of names: there is none, and these are the columns' names.
    usecols: which columns, by name or number, in the order in which they are wanted. None: all.
    dtype: torch.float32, float64, int64 or bool, "category", or a sequence of strings; or for each column one of these,
        as a mapping from its name or number (a defaultdict says what the others are). None: torch's default dtype.
        Of "category", strings become int64 codes in the order in which they first appear; of a sequence, a string's
        code is its place in it, and others are errors.
    na_values: strings that, besides the empty field, mean a missing value: NaN where the dtype is a float, -1 in a
        category, and an error in int64 and bool. They are compared as text, in numbers without the blanks around it.
    rows: (start, stop) of the rows to read, the first being 0, the header not counted. stop=None: to the end.
    chunk_rows: returns an iterator of tables with so many rows each, the last with what is left. Of a file larger than
        memory no more than that is held. A category's codes mean the same in all chunks; its vocabulary grows.

    Returns a Table(values, columns, vocabularies). Where dtype is one for all, values is one tensor [rows, columns]
    (int64 where that is "category"). Where it is a mapping, values is a dict from each column's name to its tensor
    [rows].

    Numbers are what float() and int() make of the field, to the last bit (of float32: that, rounded), so blanks around
    them are allowed, and nan and inf are numbers; underscores and digits that are not ASCII are not. bools are true,
    false, 1 and 0, in any case. The file is mapped, so it must not be shortened while it is read; memory is needed for
    the tensors alone (twice, for a moment, where it is compressed and not read in chunks).

    Raises ValueError, which names the file, and the line and the column where it is about these: where a field is not
    what its dtype says, where a row has more or fewer fields than the header or the first row, where quotes are not
    closed or followed by text, where a carriage return is not at a line's end, where text is not UTF-8, where the file
    has no header, where columns are unknown, or share a name, or where what was compressed is damaged. OSError where
    the file cannot be read.
    """
    first, last = _row_range(rows)
    rows_each = None if chunk_rows is None else _as_int(chunk_rows) or 0
    if rows_each is not None and rows_each < 1:
        raise ValueError(f"read_csv: chunk_rows must be a positive int, got {chunk_rows!r}")
    are_words = isinstance(na_values, Iterable) and not isinstance(na_values, (str, Mapping))
    missing = list(na_values) if are_words else [na_values]
    if not all(isinstance(word, str) for word in missing):
        raise ValueError(f"read_csv: na_values must be strings, got {na_values!r}")
    reader = _Reader(os.fspath(path), _dialect(delimiter, quotechar, comment), header, usecols, dtype, missing)
    if chunk_rows is not None:
        return reader.chunks(first, last, rows_each)
    with reader:
        return reader.joined(list(reader.tables(first, last)))


def _row_range(rows):
    start, stop = (_as_int(end) for end in rows) if isinstance(rows, (tuple, list)) and len(rows) == 2 else (None, 0)
    if start is None or (stop is None and rows[1] is not None) or not 0 <= start <= (start if stop is None else stop):
        raise ValueError(f"read_csv: rows must be (start, stop) with 0 <= start <= stop, got {rows!r}")
    return min(start, _ALL), _ALL if stop is None else min(stop, _ALL)


def _as_int(number):
    """Python's int of what is one, NumPy's too; None of what is not."""
    try:
        return None if isinstance(number, bool) else operator.index(number)
    except TypeError:
        return None


def _dialect(delimiter, quotechar, comment):
    named = {"delimiter": delimiter, "quotechar": quotechar, "comment": comment}
    for name, c in named.items():
        if c is None and name != "delimiter":
            continue
        if not isinstance(c, str) or len(c) != 1 or not c.isascii() or c.isalnum() or c in "\0\r\n+-.":
            raise ValueError(
                f"read_csv: {name} must be one ASCII character, no letter, digit, sign, point or line end, got {c!r}"
            )
    given = [c for c in named.values() if c is not None]
    if len(set(given)) < len(given):
        raise ValueError(f"read_csv: delimiter, quotechar and comment must differ, got {named}")
    return _data.Dialect(delimiter, quotechar or "\0", comment or "\0")


def _empty(*sizes, dtype):
    return _data.in_huge_pages(torch.empty(sizes, dtype=dtype, device="cpu"))


class _Whole:
    """A file as it lies in the page cache; or what a pipe gives, and a file that does not say how large it is."""

    final = True
    lines_before = 0

    def __init__(self, file):
        is_mapped = os.fstat(file.fileno()).st_size > 0
        self.text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_mapped else file.read()
        self.begin = 0

    def close(self):
        if isinstance(self.text, mmap.mmap):
            self.text.close()


class _Decompressed:
    """What is left of the text that was read so far: more() reads on."""

    def __init__(self, file):
        self._file = gzip.GzipFile(fileobj=file)
        self.text, self.begin, self.final = b"", 0, False
        self.lines_before = 0  # that are no longer in the text

    def more(self):
        self.lines_before += _data.count_lines(self.text, self.begin)
        rest = self.text[self.begin :]
        # As much again, where one record needs all of it: it is scanned from its begin.
        new = self._file.read(max(_BLOCK, len(rest)))
        self.text, self.begin, self.final = rest + new, 0, not new

    def close(self):
        self._file.close()


class _Reader:
    def __init__(self, path, dialect, header, usecols, dtype, missing):
        self._path, self._dialect = path, dialect
        self._missing = [word.encode() for word in missing]
        self._source = None
        self._file = open(path, "rb")  # noqa: SIM115 (__exit__ closes it)
        try:
            is_compressed = self._file.peek(2)[:2] == _GZIP
            self._source = _Decompressed(self._file) if is_compressed else _Whole(self._file)
            self._read_header(header)
            self._choose(usecols, dtype)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._source is not None:
            self._source.close()
        self._file.close()

    def _error(self, what):
        return ValueError(f"{self._path}: {what}")

    def _malformed(self, error):
        position, field, what = error.args
        where = f"line {self._source.lines_before + _data.count_lines(self._source.text, position) + 1}"
        if field >= 0:
            name = self._names[field] if field < len(self._names) else field
            where += f", column {field + 1}" + (f" ({name!r})" if isinstance(name, str) else "")
        return self._error(f"{where}: {what.decode(errors='backslashreplace')}")

    def _more(self):
        try:
            self._source.more()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._error(f"damaged (it begins as what gzip compressed does): {error}") from error

    def _index(self, enough):
        source = self._source
        return _data.csv_index(source.text, source.begin, self._dialect, source.final, enough, _PART)

    def _first_record(self):
        """Its fields, and where it ends; none where there is none."""
        source = self._source
        while not source.final and self._index(1).rows == 0:
            self._more()
        if source.text[:3] == _BOM and source.begin == 0:
            source.begin = 3
        try:
            return _data.csv_record(source.text, source.begin, self._dialect)
        except _data.Malformed as error:
            raise self._malformed(error) from None

    def _read_header(self, header):
        self._names = ()
        record, end = self._first_record()
        if header is True:
            if not record:
                raise self._error("there is no header: the file is empty")
            try:
                self._names = [name.decode() for name in record]
            except UnicodeDecodeError as error:
                raise self._error(f"the header is not UTF-8: {error}") from error
            self._source.begin = end
        elif header is False:
            if not record:
                raise self._error("there are no columns: the file is empty")
            self._names = list(range(len(record)))
        else:
            self._names = list(header) if isinstance(header, Iterable) else []
            if not all(isinstance(name, str) for name in self._names) or isinstance(header, str) or not self._names:
                raise ValueError(f"read_csv: header must be True, False or a sequence of names, got {header!r}")

    def _number(self, column, what):
        """Of a column that is given by name or number."""
        if isinstance(column, str) and len(self._numbers_of[column]) == 1:
            return self._numbers_of[column][0]
        number = _as_int(column)
        if number is not None and 0 <= number < len(self._names):
            return number
        several = " exactly one" if column in self._names else ""
        raise self._error(f"{what} names column {column!r}, which is not{several} of {self._names}")

    def _choose(self, usecols, dtype):
        self._numbers_of = defaultdict(list)
        for number, name in enumerate(self._names):
            self._numbers_of[name].append(number)
        if isinstance(usecols, str) or not (usecols is None or isinstance(usecols, Iterable)):
            raise ValueError(f"read_csv: usecols must be a sequence of names or numbers, got {usecols!r}")
        numbers = range(len(self._names)) if usecols is None else [self._number(c, "usecols") for c in usecols]
        self._numbers = list(numbers)
        self.columns = tuple(self._names[k] for k in numbers)
        if len(set(self.columns)) < len(self.columns):
            raise self._error(f"columns share a name: {list(self.columns)}")
        self._one = not isinstance(dtype, Mapping)
        if self._one:
            kinds = [torch.get_default_dtype() if dtype is None else dtype] * len(numbers)
        else:
            numbers_said = [self._number(column, "dtype") for column in dtype]
            if len(set(numbers_said)) < len(numbers_said):
                raise self._error(f"dtype says twice what a column is: {list(dtype)}")
            kinds = [self._kind_of(k, dtype) for k in numbers]
        self._dtypes, self._vocabularies, self._words = [], {}, defaultdict(list)
        for name, kind in zip(self.columns, kinds, strict=True):
            self._dtypes.append(kind if kind in _DTYPES else torch.int64)
            if kind in _DTYPES:
                continue
            fixed = kind != "category"
            words = list(kind) if fixed and isinstance(kind, (list, tuple)) else []
            if fixed and (not words or len(set(words)) < len(words) or not all(isinstance(w, str) for w in words)):
                raise ValueError(
                    "read_csv: a dtype is torch.float32, float64, int64 or bool, 'category', or a sequence of strings "
                    f"that differ, got {kind!r}" + (" (torch's default dtype)" if dtype is None else "")
                )
            vocabulary = _data.Vocabulary()
            for word in words:
                vocabulary.add(word)
            self._vocabularies[name] = vocabulary, not fixed

    def _kind_of(self, number, dtype):
        name = self._names[number]
        if number in dtype:
            return dtype[number]
        try:
            return dtype[name]
        except KeyError:
            raise self._error(f"dtype does not say what column {name!r} is") from None

    def _empty(self, rows):
        """Values for so many rows, and their columns."""
        if self._one:
            dtype = self._dtypes[0] if self._dtypes else None
            values = _empty(rows, len(self.columns), dtype=dtype)
            return values, values.unbind(1)
        values = {c: _empty(rows, dtype=d) for c, d in zip(self.columns, self._dtypes, strict=True)}
        return values, list(values.values())

    def _table(self, values):
        for name, (vocabulary, _) in self._vocabularies.items():
            self._words[name] += vocabulary.words_from(len(self._words[name]))
        return Table(values, self.columns, {name: list(self._words[name]) for name in self._vocabularies})

    def _parsed(self, index, first, last):
        """A table of the index's rows first to last, after which the next one begins."""
        values, columns = self._empty(last - first)
        table = _data.Table(len(self._names), self._missing)
        for number, name, column in zip(self._numbers, self.columns, columns, strict=True):
            table.add(number, column, *self._vocabularies.get(name, (None, True)))
        source = self._source
        try:
            source.begin = _data.csv_parse(source.text, source.begin, self._dialect, index, first, last, table)
        except _data.Malformed as error:
            raise self._malformed(error) from None
        return self._table(values)

    def tables(self, first, last, at_most=None):
        """Rows first to last: of what is there already, or so many at a time."""
        skip, left, source = first, last - first, self._source
        while left > 0:
            wanted = left if at_most is None else min(left, at_most)
            index = self._index(skip + wanted)
            if not source.final and index.rows <= skip:
                skip -= index.rows
                source.begin += index.size
                self._more()
            elif not source.final and index.rows < skip + wanted and at_most is not None:
                self._more()
            else:
                rows = min(wanted, index.rows - skip)
                if rows <= 0:
                    return
                yield self._parsed(index, skip, skip + rows)
                skip, left = 0, left - rows

    def chunks(self, first, last, at_most):
        with self:
            yield from self.tables(first, last, at_most)

    def joined(self, tables):
        if len(tables) == 1:
            return tables[0]
        parts = [table.values for table in tables] or [self._empty(0)[0]]
        if self._one:
            return self._table(torch.cat(parts))
        return self._table({name: torch.cat([part.pop(name) for part in parts]) for name in self.columns})
