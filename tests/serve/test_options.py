"""Options that the environment gives."""

import argparse

import pytest

from mist_fairseq.serve.command import main, make_parser
from mist_fairseq.serve.options import Parser, Several


@pytest.fixture
def parser():
    parser = Parser(prog="x")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--key", action=Several, default=[])
    parser.add_argument("--log", action=argparse.BooleanOptionalAction, default=False)
    return parser


def test_the_environment_gives_defaults_and_the_command_line_wins(parser, monkeypatch):
    assert vars(parser.parse_args([])) == {"model": None, "max_batch": 32, "key": [], "log": False}
    for name, value in {"MODEL": "a", "MAX_BATCH": "8", "KEY": "one  two\n", "LOG": "1", "HELP": "1"}.items():
        monkeypatch.setenv(f"MIST_{name}", value)
    assert vars(parser.parse_args([])) == {"model": "a", "max_batch": 8, "key": ["one", "two"], "log": True}
    given = parser.parse_args(["b", "--max-batch", "4", "--key", "three", "--key", "four", "--no-log"])
    assert vars(given) == {"model": "b", "max_batch": 4, "key": ["three", "four"], "log": False}
    wrong = "--max-batch cannot work, nor can model"
    assert parser.blame(wrong, given) == wrong
    assert parser.blame(wrong, parser.parse_args(["b"])) == f"{wrong} (of the environment: MIST_MAX_BATCH)"
    assert parser.blame("no folder a", parser.parse_args([])) == "no folder a (of the environment: MIST_MODEL)"
    assert "32" not in parser.format_help()


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("MIST_MAX_BATCH", "many", "MIST_MAX_BATCH is 'many', expected int"),
        ("MIST_LOG", "perhaps", "MIST_LOG is 'perhaps', expected 1 or 0"),
    ],
)
def test_a_wrong_value_is_blamed_on_its_variable(parser, monkeypatch, capsys, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([])
    assert ended.value.code == 2 and f"x: error: {message}\n" in capsys.readouterr().err


def test_the_command_names_variables_in_its_errors(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "expected DIR, a model, or the environment variable MIST_MODEL" in capsys.readouterr().err
    monkeypatch.setenv("MIST_MODEL", "nowhere")
    monkeypatch.setenv("MIST_MAX_BATCH", "0")
    with pytest.raises(SystemExit) as ended:
        main(["--port", "0"])
    assert ended.value.code == "error: --max-batch is 0, expected at least 1 (of the environment: MIST_MAX_BATCH)"


def test_every_option_of_the_command_has_a_variable(monkeypatch):
    """Each is set to a value of its own, and read back."""
    options = vars(make_parser().parse_args([]))
    texts = {name: str(7 + i) for i, name in enumerate(options)} | {"access_log": "yes"}
    for name, text in texts.items():
        monkeypatch.setenv(f"MIST_{name.upper()}", text)
    given = vars(make_parser().parse_args([]))
    right = {name: (str if options[name] is None else type(options[name]))(text) for name, text in texts.items()}
    lists = {name: [texts[name]] for name in ("api_key", "cors_origin")}
    assert given == right | lists | {"access_log": True, "threads": int(texts["threads"])}
