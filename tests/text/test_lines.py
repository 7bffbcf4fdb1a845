import pytest

from mist_fairseq.text.lines import count_lines, lines_of_file
from tests.awkward import NOT_UTF8, as_file, long_texts, texts


@pytest.mark.parametrize("windows", [False, True])
def test_every_text_is_a_line(windows, tmp_path):
    path = tmp_path / "text"
    written = [*texts(400), *long_texts()]
    path.write_bytes(as_file(written, windows))
    assert list(lines_of_file(path)) == written and count_lines(path) == len(written)


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"", []),
        (b"\n", [""]),
        (b"\r\n\r\n", ["", ""]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\r\nb\r", ["a\r", "b\r"]),  # a \r that ends no line is text
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbf\n", [""]),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_ends_of_lines_and_of_files(content, lines, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(content)
    assert list(lines_of_file(path)) == lines


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_called_so(encoding, tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffa\nb".encode(encoding))  # as Windows PowerShell writes output to files
    with pytest.raises(ValueError, match=r"/text is UTF-16, expected UTF-8: iconv -f UTF-16 -t UTF-8 \S*/text$"):
        next(lines_of_file(path))


@pytest.mark.parametrize("wrong", NOT_UTF8.values(), ids=NOT_UTF8)
def test_what_is_not_utf8_is_refused_by_file_and_line(wrong, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a\rb\n" + wrong + b"\nc\n")
    lines = lines_of_file(path)
    assert next(lines) == "a\rb"
    with pytest.raises(ValueError, match=r"/text, line 2 is not UTF-8: .* at its byte [\d,]+ \(0x..\): convert"):
        next(lines)
