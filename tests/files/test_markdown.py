from mist_fairseq.files.markdown import markdown_table


def test_markdown_table():
    table = markdown_table(["a", "b"], [["1|2", "x\ny"], ["", "z"]])
    assert table == "| a | b |\n| --- | --- |\n| 1\\|2 | x y |\n|  | z |"
