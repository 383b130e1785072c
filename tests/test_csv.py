"""rusttorch.data.read_csv against Python's csv module, float() and int().

Of generated files it takes 200; with --hypothesis-profile=full, 20,000.
"""

import csv
import gzip
import io
import math
import os
import shutil
import struct
import subprocess
import threading
from collections import defaultdict
from pathlib import Path

import pytest
import rusttorch
import torch
from rusttorch.data import csv as module
from rusttorch.data import read_csv
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path):
    def made(text, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return made


def bits(value):
    """Of a float64, where all NaNs are one."""
    return struct.pack("<d", math.nan if value != value else value)


def test_one_tensor(file):
    table = read_csv(file("a,b,c\n1,2.5,-3e2\n4,5,6\n"))
    assert table.values.equal(torch.tensor([[1, 2.5, -300], [4, 5, 6]]))
    assert table.columns == ("a", "b", "c") and table.vocabularies == {}
    assert table.values.dtype == torch.float32 and table.values.is_contiguous()


def test_columns_of_several_dtypes(file):
    path = file("i,f,d,b,s\n1,2.5,0.1,true,red\n-9223372036854775808,,nan,0,blue\n+3,-inf,1e-3,FALSE,\n4,1,2,1,red\n")
    kinds = {"i": torch.int64, "f": torch.float32, "d": torch.float64, "b": torch.bool, "s": "category"}
    values, columns, vocabularies = read_csv(path, dtype=kinds)
    assert list(values) == list(columns) == list("ifdbs")
    assert values["i"].tolist() == [1, -(2**63), 3, 4]
    assert values["f"].dtype == torch.float32 and values["f"][2] == -math.inf and values["f"][1].isnan()
    assert values["d"].dtype == torch.float64 and values["d"][0].item() == 0.1 and values["d"][1].isnan()
    assert values["b"].tolist() == [True, False, False, True]
    assert values["s"].tolist() == [0, 1, -1, 0] and vocabularies == {"s": ["red", "blue"]}


def test_headers(file):
    path = file("1,2\n3,4\n")
    assert read_csv(path, header=False).columns == (0, 1)
    assert read_csv(path, header=False).values.tolist() == [[1, 2], [3, 4]]
    named = read_csv(path, header=["x", "y"], dtype={"x": torch.int64, "y": torch.int64})
    assert named.values["y"].tolist() == [2, 4]
    assert read_csv(path).columns == ("1", "2")
    assert read_csv(file("a,b\n")).values.shape == (0, 2)
    assert read_csv(file(""), header=["a"]).values.shape == (0, 1)


def test_columns_by_name_and_number(file):
    path = file('a,"b,""c",d\n1,2,x\n3,4,y\n')
    assert read_csv(path, usecols=['b,"c', "a"]).values.tolist() == [[2, 1], [4, 3]]
    assert read_csv(path, usecols=[0]).values.tolist() == [[1], [3]]
    kinds = defaultdict(lambda: torch.int64, {2: "category"})
    values = read_csv(path, dtype=kinds, usecols=[2, "a"]).values
    assert values["d"].tolist() == [0, 1] and values["a"].tolist() == [1, 3]


def test_a_given_vocabulary(file):
    path = file("c\nb\na\n")
    assert read_csv(path, dtype=["a", "b"]).values.tolist() == [[1], [0]]
    with pytest.raises(ValueError, match=r"data.csv: line 2, column 1 \('c'\): 'b' is not in the column's vocabulary"):
        read_csv(path, dtype={"c": ["a"]})


def test_missing_values(file):
    path = file('a,b\n-999,1\n,NA\n"",2\n')
    assert read_csv(file("a\n -999\n"), na_values="-999").values.isnan().all()
    path = file('a,b\n-999,1\n,NA\n"",2\n')
    values = read_csv(path, na_values=["-999", "NA"]).values
    assert values.isnan().tolist() == [[True, False], [True, True], [True, False]]
    with pytest.raises(ValueError, match=r"line 3, column 1 \('a'\): a missing value, for which int64 has no number"):
        read_csv(path, dtype=torch.int64, usecols=["a"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_bom_and_comments(file, end, last):
    lines = ["# made by hand, it's said", "a;b", "", "1;2 # not 3", "#", "4;5"]
    path = file("\ufeff" + end.join(lines) + end * last)
    table = read_csv(path, delimiter=";", comment="#")
    assert table.columns == ("a", "b") and table.values.tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize("part", [1, 5, 64, 1 << 18])
def test_line_ends_within_quotes(file, monkeypatch, part):
    monkeypatch.setattr(module, "_PART", part)
    words = ["x\ny", 'say "hi"\n\n', "1,2", "\n#\n", "ü\r\n€", "plain", 'a"b']
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["n", "word", "m"])
    for k in range(50):
        writer.writerow([k, words[k * k % len(words)], k / 7])
    path = file(text.getvalue())
    kinds = {"n": torch.int64, "word": "category", "m": torch.float64}
    values, _, vocabularies = read_csv(path, dtype=kinds)
    assert values["n"].tolist() == list(range(50)) and values["m"].tolist() == [k / 7 for k in range(50)]
    assert [vocabularies["word"][c] for c in values["word"]] == [words[k * k % len(words)] for k in range(50)]
    assert vocabularies["word"] == list(dict.fromkeys(words[k * k % len(words)] for k in range(50)))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("block", [1, 40, 1 << 25])
def test_rows_and_chunks(file, monkeypatch, compressed, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    monkeypatch.setattr(module, "_PART", 16)
    text = ("k,w\n" + "".join(f'{k},"w\n{k % 5}"\n\n' for k in range(40))).encode()
    path = file(gzip.compress(text[:200]) + gzip.compress(text[200:]) if compressed else text)
    kinds = {"k": torch.int64, "w": "category"}
    for first, last in ((0, None), (0, 0), (7, 9), (39, None), (40, 50), (3, 1000)):
        expected = list(range(40))[first:last]
        table = read_csv(path, dtype=kinds, rows=(first, last))
        assert table.values["k"].tolist() == expected
        assert [table.vocabularies["w"][c] for c in table.values["w"]] == [f"w\n{k % 5}" for k in expected]
        for size in (1, 7, 100):
            chunks = list(read_csv(path, dtype=kinds, rows=(first, last), chunk_rows=size))
            assert [len(chunk.values["k"]) for chunk in chunks] == [
                min(size, len(expected) - k) for k in range(0, len(expected), size)
            ]
            assert [k for chunk in chunks for k in chunk.values["k"].tolist()] == expected
            words = [(chunk.vocabularies["w"], c) for chunk in chunks for c in chunk.values["w"]]
            assert [of[c] for of, c in words] == [f"w\n{k % 5}" for k in expected]


ERRORS = {
    "a,b\n1,x\n": r"line 2, column 2 \('b'\): 'x' is no float32",
    "a,b\n1,2\n\n\n3\n": "line 5: expected 2 fields, got 1",
    "a,b\n1,2,3,4\n": "line 2: expected 2 fields, got 4",
    "a,b\n1,2,\n": "line 2: expected 2 fields, got 3",
    'a,b\n1,"2\n3': r"line 2, column 2 \('b'\): a quote that is not closed",
    'a,b\n"1\n2" 3,4\n': r"line 3, column 1 \('a'\): text after a closing quote",
    "a,b\n1\r,2\n": r"line 2, column 1 \('a'\): a carriage return without a line feed",
    "a,b\n1,2\r3,4\n5,6\n": r"line 2, column 2 \('b'\): a carriage return without a line feed",
    "a,b\n1_000,2\n": r"line 2, column 1 \('a'\): '1_000' is no float32",
    "a,b\n1, \n": r"line 2, column 2 \('b'\): ' ' is no float32",
    "a,b\n1,\0\n": r"line 2, column 2",
    "a,b\n1,2e\n": r"'2e' is no float32",
    "a,b\n1,0x10\n": r"'0x10' is no float32",
    "": "there is no header: the file is empty",
    "a,a\n1,2\n": "columns share a name",
    b"\xff\xfe,b\n": "the header is not UTF-8",
    gzip.compress(b"a,b\n1,2\n" * 100, mtime=0)[:-20]: "end-of-stream|Error",
}


@pytest.mark.parametrize("text", ERRORS)
def test_malformed_files(file, text):
    with pytest.raises(ValueError, match=r"data.csv: .*" + ERRORS[text]):
        read_csv(file(text))
    with pytest.raises(ValueError, match=r"data.csv: .*" + ERRORS[text].replace("float32", "int64")):
        read_csv(file(text), dtype=torch.int64)


@pytest.mark.parametrize(
    "number", ["1.0", "9223372036854775808", "-9223372036854775809", "", "1e3", "- 1", "+-1", "0x1"]
)
def test_what_is_no_int64(file, number):
    with pytest.raises(ValueError, match=r"data.csv: line 2, column 2"):
        read_csv(file(f"a,b\n1,{number}\n"), dtype=torch.int64)


def test_what_is_not_utf8(file):
    for text in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"):
        with pytest.raises(ValueError, match=r"data.csv: line 3, column 1 \('a'\): .* is not UTF-8"):
            read_csv(file(b"a\nx\n" + text + b"\n"), dtype="category")
    assert read_csv(file("a\n😀\nß\n"), dtype="category").vocabularies["a"] == ["😀", "ß"]


def test_the_first_error_of_all_threads_is_raised(file, monkeypatch):
    monkeypatch.setattr(module, "_PART", 8)
    lines = ["a", *["1"] * 1000]
    lines[400] = lines[700] = "x"
    for _ in range(20):
        with pytest.raises(ValueError, match=r"line 401, column 1"):
            read_csv(file("\n".join(lines)))


def test_an_error_in_a_later_block_has_the_file_s_line(file, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 16)
    lines = ["a", *["1"] * 300, "x"]
    path = file(gzip.compress("\n".join(lines).encode()))
    chunks = read_csv(path, chunk_rows=10)
    for _ in range(30):
        next(chunks)
    with pytest.raises(ValueError, match=r"line 302, column 1"):
        next(chunks)


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": ",,"},
        {"delimiter": "e"},
        {"delimiter": '"'},
        {"comment": "\n"},
        {"usecols": ["z"]},
        {"usecols": [2]},
        {"usecols": ["a", 0]},
        {"dtype": torch.int32},
        {"dtype": {"a": torch.int64}},
        {"dtype": {"a": torch.int64, "b": torch.int64, "z": torch.int64}},
        {"dtype": ["x", "x"]},
        {"rows": (2, 1)},
        {"rows": (-1, None)},
        {"rows": 1},
        {"rows": range(2)},
        {"rows": (None, 1)},
        {"rows": (0, 1.5)},
        {"chunk_rows": 0},
        {"chunk_rows": True},
        {"header": "ab"},
        {"header": []},
        {"header": None},
        {"header": 0},
        {"usecols": "ab"},
        {"usecols": 0},
        {"na_values": [-999]},
        {"na_values": None},
        {"na_values": {"a": "1"}},
        {"dtype": {0: torch.int64, "a": torch.float64, "b": torch.int64}},
    ],
)
def test_options_that_are_none(file, options):
    with pytest.raises(ValueError):
        read_csv(file("a,b\n1,2\n"), **options)


def test_no_file(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(OSError):
            read_csv(path)


def test_numbers_that_are_not_python_s(file):
    np = pytest.importorskip("numpy")
    path = file("a,b\n1,2\n3,4\n")
    one = np.int64(1)
    (table,) = read_csv(path, usecols=[one], rows=(one, None), chunk_rows=one)
    assert table.values.tolist() == [[4]]


def test_pipes(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for text in (b"a,b\n1,2\n", gzip.compress(b"a,b\n1,2\n")):
        writer = threading.Thread(target=path.write_bytes, args=(text,))
        writer.start()
        assert read_csv(path).values.tolist() == [[1, 2]]
        writer.join()


def test_devices_and_modes(file):
    path = file("a,b\n1,2\n")
    with torch.device("meta"):
        assert read_csv(path).values.tolist() == [[1, 2]]
    with FakeTensorMode(), pytest.raises(TypeError, match="no memory in this mode"):
        read_csv(path)


def test_threads_read_the_same(file):
    x = torch.randn(20_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = file("a,b,c,d,e\n" + "".join(",".join(map(repr, row)) + "\n" for row in x.tolist()))
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert read_csv(path, dtype=torch.float64).values.equal(x)
            assert read_csv(path, dtype=torch.float32).values.equal(x.float())
    finally:
        torch.set_num_threads(threads)


def test_numbers_to_the_last_bit(file):
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**63), 2**63 - 1, (20_000,), generator=generator)
    numbers = [repr(v) for v in patterns.view(torch.float64).tolist()]
    for k, v in enumerate(torch.randn(20_000, dtype=torch.float64, generator=generator).tolist()):
        numbers += [repr(v), f"{v:.{k % 19}f}", f"{v * 10.0 ** (k % 50 - 25):.{k % 25}e}", f"{v * 1e6:.{k % 22}f}"]
    # Halves between two doubles, what is next to them, the largest and the smallest, and more digits than fit.
    for m in (2**53 + 1, 2**53 + 3, 2**54 - 1, 2**60 + 2**7, 2**63 + 2**10, 2**64 - 2**10):
        numbers += [str(m + d) + zeros for d in (-1, 0, 1) for zeros in ("", ".0", "0" * 20, ".000000000000000000001")]
        numbers += [f"{m + d}e-{e}" for d in (-1, 0, 1) for e in range(1, 60)]
    numbers += ["1e308", "1.7976931348623157e308", "1.7976931348623159e308", "1e309", "-1e400", "1e-400", "4.9e-324"]
    numbers += [
        "2.4e-324",
        "2.5e-324",
        "0",
        "-0",
        "-0.0",
        ".5",
        "5.",
        "-.5e1",
        "00012",
        "1E+5",
        "inf",
        "-Infinity",
        "NaN",
    ]
    numbers += ["0.00000000000000000001234567890123456789", "1e99999999999999999999", "1e-99999999999999999999"]
    numbers += ["0e999999999999", "0.0000000000", "18446744073709551616", "12345678.12345678"]
    numbers += ["0" * 400 + "1" + "0" * 400 + "e-400", "0." + "0" * 400 + "1e400", "9" * 800]
    text = "a\n" + "\n".join(numbers) + "\n"
    found = read_csv(file(text), dtype=torch.float64).values[:, 0].tolist()
    wrong = [(n, v) for n, v in zip(numbers, found, strict=True) if bits(float(n)) != bits(v)]
    assert not wrong, wrong[:10]
    single = read_csv(file(text)).values[:, 0]
    assert single.equal(torch.tensor(found).float()) or torch.equal(
        single.nan_to_num(), torch.tensor(found).nan_to_num()
    )


try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:
    pass
else:
    FIELDS = st.one_of(
        st.floats().map(repr),
        st.integers(-(10**25), 10**25).map(str),
        st.decimals(allow_nan=False, allow_infinity=False, places=5).map(str),
        st.text(alphabet="0123456789.eE+- ", max_size=25),
        st.text(alphabet='ab,;"\r\n #é€😀\t1', max_size=6),
        st.sampled_from(["", "NA", "nan", "inf", '"', '""', "\n", "\r\n", " 1", "-0.0"]),
    )

    @st.composite
    def files(draw):
        """Text, mostly as csv.writer writes it, sometimes cut or with something put in."""
        columns = draw(st.integers(1, 4))
        rows = draw(st.lists(st.lists(FIELDS, min_size=columns, max_size=columns), max_size=8))
        out = io.StringIO()
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        writer = csv.writer(out, quoting=quoting, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
        writer.writerows(rows)
        text = out.getvalue()
        if draw(st.booleans()):
            at = draw(st.integers(0, len(text)))
            text = draw(st.sampled_from([text[:at], text[:at] + draw(FIELDS) + text[at:]]))
        return text, columns

    def by_csv(text, columns, converted):
        """The columns by Python's csv module, or None: an error."""
        try:
            records = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
            if any(len(row) != columns for row in records):
                return None
            return [[converted(field) for field in column] for column in zip(*records, strict=True)] or [[]] * columns
        except (csv.Error, ValueError):
            return None

    def as_float(field):
        if field == "" or field == "NA":
            return bits(math.nan)
        # What float() takes and we do not.
        if "_" in field or not field.isascii() or field.strip(" \t") != field.strip():
            raise ValueError
        return bits(float(field))

    @settings(deadline=None)
    @given(files(), st.sampled_from([1, 2, 7, 1 << 18]), st.booleans())
    def test_generated_files_are_read_as_python_reads_them(tmp_path_factory, file, part, compressed):
        text, columns = file
        path = tmp_path_factory.getbasetemp() / "generated.csv"
        path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
        names = [f"c{k}" for k in range(columns)]
        was, module._PART = module._PART, part
        try:
            for dtype, converted in ((torch.float64, as_float), ("category", str)):
                expected = by_csv(text, columns, converted)
                # A carriage return by itself ends a line there; here it is an error.
                alone = "\r" in text.replace("\r\n", "").removesuffix("\r")
                try:
                    values, _, vocabularies = read_csv(
                        path, header=names, dtype=dtype, na_values="NA" * (dtype != "category")
                    )
                except ValueError:
                    assert expected is None or alone
                    continue
                if expected is None:
                    assert alone
                    continue
                found = [column.tolist() for column in values.unbind(1)]
                if dtype == "category":
                    found = [
                        ["" if c < 0 else vocabularies[n][c] for c in f] for n, f in zip(names, found, strict=True)
                    ]
                else:
                    found = [[bits(v) for v in f] for f in found]
                assert found == expected or alone
        finally:
            module._PART = was


def test_mutated_text_under_sanitizers(tmp_path):
    """The fuzzer's target, on a fixed series of mutations. Ten minutes of libFuzzer:

    clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined tests/csv_fuzz.cpp csrc/data/{csv,number}.cpp -o fuzz
    ./fuzz -max_total_time=600 -max_len=400
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    main = tmp_path / "main.cpp"
    main.write_text(
        """
        #include <cstdint>
        #include <random>
        #include <string>
        extern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t);
        int main() {
          std::mt19937 random(0);
          const std::string pool = "\\"\\"\\"\\n\\n\\n\\r,,,,;;#0123456789..-+eE inftrueNA\\xc3\\xa9\\xff";
          for (int k = 0; k < 20000; ++k) {
            std::string text = {char(random()), char(random())};
            for (size_t n = random() % 100; n > 0; --n) text += pool[random() % pool.size()];
            LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
          }
        }
        """
    )
    sources = [main, ROOT / "tests" / "csv_fuzz.cpp", *(ROOT / "csrc" / "data" / f"{n}.cpp" for n in ("csv", "number"))]
    flags = ["-std=c++20", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    subprocess.run([compiler, *flags, *sources, "-o", tmp_path / "fuzz"], check=True)
    ran = subprocess.run([tmp_path / "fuzz"], capture_output=True, text=True)
    if "LeakSanitizer has encountered a fatal error" in ran.stderr:
        pytest.skip("LeakSanitizer cannot run here")
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_it_is_public():
    assert rusttorch.data.read_csv is read_csv
