import pytest

from mist_fairseq.experiments.evaluation import read_generation, read_lines, read_outputs

PRINTED = """INFO | loading
S-1\tsecond source
T-1\tsecond reference
H-1\t-0.5\tsecond output
D-1\t-0.5\tsecond output
P-1\t-0.5 -0.5
D-1\t-0.9\tanother second output
P-1\t-0.9 -0.9
S-0\t
T-0\tfirst reference
H-0\t-0.1\t
D-0\t-0.1\t
P-0\t
INFO | Translated 2 sentences (5 tokens) in 0.1s (20.50 sentences/s, 50.0 tokens/s)
"""


def test_output_comes_in_the_order_of_the_data():
    result = read_generation(PRINTED)
    assert result.sources == ["", "second source"] and result.outputs == ["", "second output"]
    assert result.hypotheses == [[""], ["second output", "another second output"]]
    assert result.references == ["first reference", "second reference"] and result.sentences_per_second == 20.5
    assert read_generation(PRINTED.replace("T-", "X-")).references == []


@pytest.mark.parametrize(
    "lost, message",
    [
        *((line, "lines") for line in ("S-1\tsecond source\n", "D-0\t-0.1\t\n", "T-0\tfirst reference\n")),
        (PRINTED[PRINTED.index("S-0") :], "lines"),
        (PRINTED[PRINTED.index("P-0") :], "ends within a sentence"),
        (PRINTED[PRINTED.index("-0.1\t\nP-0") :], "lines"),
    ],
)
def test_lost_sentences_are_noticed(lost, message):
    with pytest.raises(ValueError, match=message):
        read_generation(PRINTED.replace(lost, ""))


def test_the_closing_line_is_not_needed(tmp_path):
    """It goes to stderr, and is neither in a redirected stdout nor in the file of --results-path."""
    path = tmp_path / "generate-test.txt"
    path.write_text(PRINTED[PRINTED.index("S-1") : PRINTED.index("INFO | Translated")])
    assert read_outputs(path) == ["", "second output"]
    assert read_generation(path.read_text()).sentences_per_second is None


def test_outputs_from_either_kind_of_file(tmp_path):
    path = tmp_path / "outputs"
    path.write_text(PRINTED)
    assert read_outputs(path) == ["", "second output"]
    path.write_bytes("a\u2028b\nc\rd\r\n\nno end".encode())  # only \n and \r\n end a line
    assert read_outputs(path) == read_lines(path) == ["a\u2028b", "c\rd", "", "no end"]
    path.write_text("an output\nD-0\tbegins like a line of fairseq-generate\n")
    assert len(read_outputs(path)) == 2
    path.write_text("D-0\t-0.1\tone\nD-1\t-0.1\ttwo\n")  # its lines, picked out
    with pytest.raises(ValueError, match="0 S- lines and 2 D- lines"):
        read_outputs(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="outputs, line 2 is not UTF-8"):
        read_outputs(path)
