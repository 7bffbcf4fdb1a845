import json

import pytest

from mist_fairseq.experiments.preparation.pair_files import PairFiles
from mist_fairseq.experiments.preparation.squad_qg import read_articles, read_pairs, read_split_lists, title_key
from tests.experiments.preparation import pairs, run_script


def question(text, *answers, **more):
    return {"id": "x", "question": text, "answers": [{"text": a, "answer_start": s} for a, s in answers], **more}


def paragraph(context, *questions):
    return {"context": context, "qas": list(questions)}


def write(path, *articles):
    data = [{"title": title, "paragraphs": paragraphs} for title, *paragraphs in articles]
    path.write_text(json.dumps({"data": data, "version": "1.1"}), encoding="utf-8")
    return path


def numbered(title, number):
    return title, *(
        paragraph(f"Fact {title} {i}.", question(f"Which {title} {i}?", (str(i), 0))) for i in range(number)
    )


def expected_of(title, number):
    return [(f"{i} [SEP] Fact {title} {i}.", f"Which {title} {i}?") for i in range(number)]


def read(*paragraphs):
    files = PairFiles({})
    return list(read_pairs({"paragraphs": list(paragraphs)}, files)), files.skipped, files.remarks


def test_pairs_are_answer_aware():
    context = "\U0001f600 In 1066\u2028the [SEP] Normans\n\tcame.  "
    actual, skipped, remarks = read(
        paragraph(
            context,
            question(" When did\nthey come? ", ("1066", context.index("1066")), ("In 1066", 2)),  # the first answer
            question("Who came?", ("[SEP] Normans", context.index("[SEP]"))),
        )
    )
    passage = "\U0001f600 In 1066 the [ SEP ] Normans came."
    assert actual == [
        (f"1066 [SEP] {passage}", "When did they come?"),
        (f"[ SEP ] Normans [SEP] {passage}", "Who came?"),
    ]
    assert not skipped and not remarks  # offsets count code points: the emoji is one


def test_odd_questions_are_counted():
    actual, skipped, remarks = read(
        paragraph(
            "In 1066 they came.",
            question("Utf-16?", ("1066", 4)),
            question("No offset?", ("1066", None)),
            question("Elsewhere?", ("1067", 3)),
            question("  ", ("1066", 3)),
            question(None, ("1066", 3)),
            question("Unanswered?"),
            question("Blank?", (" \x00", 0)),
            question("Impossible?", ("1066", 3), is_impossible=True),
            question("Number?", (1066, 3)),
            "no question",
            {"question": "Nothing else?"},
            {"question": "Odd answers?", "answers": ["1066"]},
        ),
        paragraph(" \x00\n", question("Where?", ("x", 0))),
        {"qas": [question("Where?", ("x", 0))]},
        {"context": "no questions"},
        "no paragraph",
    )
    assert [target for _, target in actual] == ["Utf-16?", "No offset?"]
    assert remarks == {"answer offset does not match": 2}
    assert skipped == {
        "answer not in the passage": 1,
        "empty question": 1,
        "question missing or not a text": 1,
        "no answer": 6,
        "malformed question": 1,
        "empty passage": 2,
        "no list of qas": 2,
    }
    files = PairFiles({})
    assert list(read_pairs({"title": "x"}, files)) == [] and files.skipped == {"no list of paragraphs": 1}


def test_halves_of_the_dev_file(tmp_path, monkeypatch, capsys):
    train = write(tmp_path / "train.json", numbered("A", 3), numbered("B", 2))
    dev = write(tmp_path / "dev.json", numbered("C", 20), numbered("D", 21))
    actual = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        options = ["--train", train, "--dev", dev, "--out", tmp_path / name, "--seed", seed]
        assert run_script(monkeypatch, "prepare_squad_qg.py", *options) is None
        actual[name] = {split: pairs(tmp_path / name, split) for split in ("train", "valid", "test")}
    assert "valid" in capsys.readouterr().out
    one = actual["one"]
    assert one == actual["again"] and one["test"] != actual["two"]["test"]
    assert one["train"] == expected_of("A", 3) + expected_of("B", 2)
    assert len(one["valid"]) == 20 and len(one["test"]) == 21
    expected = expected_of("C", 20) + expected_of("D", 21)
    assert sorted(one["valid"] + one["test"]) == sorted(expected)
    assert [p for p in expected if p in one["test"]] == one["test"]  # in the order of the file


def test_article_lists(tmp_path, monkeypatch):
    articles = numbered("Beyonc\u00e9", 1), numbered("Kievan_Rus%27", 2), numbered("Unlisted", 4)
    train = write(tmp_path / "train.json", *articles)
    dev = write(tmp_path / "dev.json", numbered("Steam engine", 3))
    lists = {"train": "Steam_engine\r\n\n", "dev": "Kievan_Rus'\nNowhere_%26_Nobody\n", "test": "Beyonce\u0301"}
    for name, text in lists.items():
        (tmp_path / f"doclist-{name}.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    options = ["--train", train, "--dev", dev, "--out", out, "--split-lists"]
    options = [monkeypatch, "prepare_squad_qg.py", *options]
    assert run_script(*options, tmp_path) is None
    assert [len(pairs(out, split)) for split in ("train", "valid", "test")] == [3, 2, 1]
    counts = json.loads((out / "counts.json").read_text())
    assert counts["skipped"] == {"article in no list": 1}
    assert counts["remarks"]["listed but in no file: Nowhere & Nobody"] == 1

    given = [tmp_path / f"doclist-{name}.txt" for name in ("train", "dev", "test")]
    assert run_script(*options, *given, "--overwrite") is None
    assert "got 2 paths, expected one" in run_script(*options, *given[1:], "--overwrite")
    given[1].write_text("Steam engine\n")
    with pytest.raises(ValueError, match=r"doclist-dev\.txt lists 'Steam engine', which an earlier list has too"):
        read_split_lists([str(tmp_path)])


def test_titles_match_in_all_spellings():
    assert title_key("100%_of_it\n") == "100% of it"
    assert title_key("Bras%C3%ADlia") == title_key("Brasília") == title_key("Brasi\u0301lia") == "Brasília"


def test_damaged_files_are_one_line_errors(tmp_path, monkeypatch):
    train, dev = write(tmp_path / "train.json", numbered("A", 3)), write(tmp_path / "dev.json", numbered("B", 3))

    def error():
        options = ["--train", train, "--dev", dev, "--out", tmp_path / "out"]
        message = run_script(monkeypatch, "prepare_squad_qg.py", *options)
        assert message.startswith("error: ") and "\n" not in message and not (tmp_path / "out").exists()
        return message

    whole = train.read_bytes()
    for content, why in ((whole[:-30], "is truncated or not JSON"), (b"{}", "has no articles, expected")):
        train.write_bytes(content)
        assert f"train.json {why}" in error()
    train.unlink()
    assert "train.json is not a file" in error()
    train.write_bytes(whole)
    dev.write_text("")
    assert "dev.json is truncated or not JSON" in error()
    for path in (train, dev):
        write(path, ("A", paragraph("x", question("y"))))
    assert "nothing usable in the input; skipped: no answer (2)" in error()


def test_invalid_unicode_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    write(path, ("A", paragraph("a \ud83d\ude00 b QQ \ud800 in 1066", question("When?", ("1066", 14)))))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"QQ", b"\xff\xff"))
    ((source, _),) = [pair for article in read_articles(str(path)) for pair in read_pairs(article, PairFiles({}))]
    assert source.replace("?", "\ufffd") == "1066 [SEP] a \U0001f600 b \ufffd\ufffd \ufffd in 1066"
