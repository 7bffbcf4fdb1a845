"""The code of the documentation's pages, and what the site is built with."""

import argparse
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass

from mist_fairseq.criterions.mist_loss import MistLoss, MistLossConfig
from mist_fairseq.engines import engines
from mist_fairseq.engines.pytorch import PyTorchEngine
from mist_fairseq.generate.decoding import DECODINGS, Decoding, decode
from mist_fairseq.mist.config import PositionLimits
from mist_fairseq.models.baselines.nat_mass import NatMassConfig
from mist_fairseq.models.mist_model import MistConfig
from mist_fairseq.models.nar_generator import NARGenerator
from mist_fairseq.release.folder import Released, save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from mist_fairseq.scoring.scores import METRICS
from mist_fairseq.tasks.mist_task import MistTaskConfig
from mist_fairseq.tasks.translation import MistTranslationConfig
from tests.helpers import WORDS, batch, sources, tiny_config, tiny_generator, tiny_released

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module", autouse=True)
def docs_modules():
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


@pytest.fixture
def links():
    return importlib.import_module("links")


@pytest.fixture
def directives():
    return importlib.import_module("directives")


# -- the pages' code --------------------------------------------------------------------------------------------


def run_page(name, namespace):
    """Run all Python of a page, one block after the other."""
    text = (DOCS / name).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        line = text.count("\n", 0, block.start()) + 1
        exec(compile("\n" * line + block[1], DOCS / name, "exec"), namespace)  # errors tell the line of the page
    return namespace


@pytest.fixture(scope="module")
def architecture():
    torch.manual_seed(0)
    return run_page("architecture.md", {"__name__": "architecture"})


@pytest.fixture(scope="module")
def extending(architecture):
    names = dict(architecture)
    try:
        yield run_page("extending.md", names)
    finally:
        METRICS.pop("length-ratio", None)
        DECODINGS.pop("easy-first", None)
        engines().pop("double", None)


def test_python_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_folder(tiny_released(), "released", "")
    save_onnx(tiny_released(), "released-onnx")
    questions = [" ".join(WORDS[i : i + 3]) for i in range(8)]
    (tmp_path / "questions.txt").write_text("\n".join(questions) + "\n")
    names = run_page("python.md", {"__name__": "python"})
    printed = capsys.readouterr().out.split("\n")
    assert printed[-9:-1] == names["generator"].generate(questions, batch_size=32)


class Watched(PyTorchEngine):
    """Where each pass finds [MASK]s, (B, T) each; the scores are random."""

    def __init__(self, model: Released):
        super().__init__(model.encoder, model.tokenizer.special, "fp32")
        self.seen, self.generator = [], torch.Generator().manual_seed(0)

    def fill(self, tokens, lengths, state):
        masked = tokens == self.special.mask
        self.seen.append(masked)
        filled, scores = super().fill(tokens, lengths, state)
        return filled, torch.where(masked, -torch.rand(scores.shape, generator=self.generator), scores)


def masked_in_each_pass(decoding, dictionary) -> list[torch.Tensor]:
    model = tiny_released(dictionary)
    engine = Watched(model)
    tokens, lengths = sources([4 + i % 11 for i in range(40)], dictionary)
    given = Decoding(decoding, 4, min_length=12)
    candidates = decode(engine, tokens, lengths, given, model.tokenizer.special, model.limits)
    assert (candidates.steps == 4).all()
    return engine.seen


def test_the_decoding_keeps_what_it_kept(extending, dictionary):
    first, *later = masked_in_each_pass("easy-first", dictionary)
    for done, masked in enumerate(later, start=1):
        assert torch.equal(masked.sum(1), first.sum(1) * (4 - done) // 4)
    assert not any((masked & ~before).any() for before, masked in zip([first, *later], later))
    # Mask-Predict does take tokens back here, so this can be told apart.
    first, *later = masked_in_each_pass("mask-predict", dictionary)
    assert any((masked & ~before).any() for before, masked in zip([first, *later], later))


@pytest.mark.parametrize("decoding, iterations", [("single-pass", 1), ("mist", 3), ("mask-predict", 3)])
def test_the_encoder_learns_and_generates(extending, dictionary, decoding, iterations):
    torch.manual_seed(0)
    config = tiny_config(dropout=0.0)
    model = extending["PlainMist"](config, dictionary, PositionLimits(40, 20))
    model.check_limits()
    sample = batch([6, 9, 4], [5, 3, 7], dictionary)
    criterion = MistLoss(MistLossConfig(label_smoothing=0.0), None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss, size, _ = criterion(model.train(), sample)
        optimizer.zero_grad()
        (loss / size).backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 3
    generator = NARGenerator([model], dictionary, Decoding(decoding, iterations))
    together = generator.generate(None, sample)
    assert [len(ranked[0]["tokens"]) for ranked in together] == [5, 3, 7]
    for row, length in enumerate(sample["net_input"]["src_lengths"].tolist()):
        tokens = sample["net_input"]["src_tokens"][row : row + 1, :length]
        alone = generator.generate(None, {"net_input": {"src_tokens": tokens, "src_lengths": torch.tensor([length])}})
        assert torch.equal(alone[0][0]["tokens"], together[row][0]["tokens"])


def test_the_engine_says_what_the_encoder_says(extending, dictionary):
    for changes in ({}, dict(rel_pos_bins=8, max_rel_pos=12)):
        model = tiny_released(dictionary, **changes)
        texts = [" ".join(WORDS[: i + 2]) for i in range(5)]
        plain, double = (
            tiny_generator(model, accelerate=name).generate(texts, decoding="mist", return_scores=True)
            for name in ("none", "double")
        )
        for output, expected in zip(double, plain):
            assert output.text == expected.text and output.score == pytest.approx(expected.score, abs=1e-5)


# -- what the pages take from the code ----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MistTaskConfig, MistConfig, NatMassConfig, MistLossConfig])
def test_options_are_those_of_the_command_line(directives, config):
    parser = argparse.ArgumentParser(add_help=False)
    gen_parser_from_dataclass(parser, config())
    expected = {", ".join(action.option_strings or [action.dest]): action for action in parser._actions}
    found = {name: (default, text) for name, default, text in directives.options(config)}
    taken = {f"--{name.replace('_', '-')}" for name in ("train_subset", "dataset_impl", "precision")}
    assert expected.keys() - taken <= found.keys()
    for name, (default, text) in found.items():
        if name in expected:
            action = expected[name]
            assert text.startswith(action.help.split(" (default")[0].strip())
            off = action.default is False
            assert default == ("off" if off else "" if action.default is None else str(action.default)), name
            for choice in action.choices or []:
                assert str(choice) in text


def test_options_of_a_class_alone(directives):
    own = [name for name, _, _ in directives.options(MistTranslationConfig, own=True)]
    assert own == ["--max-source-positions", "--output"]
    assert len(list(directives.options(MistTranslationConfig))) > 10


def test_every_module_has_its_place_in_the_reference(directives):
    named = [
        line.strip()
        for page in (DOCS / "reference").glob("*.rst")
        for line in page.read_text().splitlines()
        if line.startswith("   mist_fairseq")
    ]
    found = [module for name in named for module in directives.modules(name)]
    assert len(found) == len(set(found))
    missing = set(directives.modules("mist_fairseq")) - {"mist_fairseq", *found}
    assert not missing, f"add to a page of docs/reference: {', '.join(sorted(missing))}"


def test_every_script_says_what_it_does(directives):
    found = dict(directives.scripts())
    assert found.keys() == {path.name for path in (DOCS.parent / "scripts").glob("*.py")}
    assert found["score.py"] == "Score outputs against the raw target file, as the paper does."
    assert all(text.endswith((".", ":")) for text in found.values())


def test_pictures_name_what_there_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "pictures"))
    draw = importlib.import_module("draw")
    for name, place in draw.NAMES.items():
        try:
            owner = importlib.import_module(place)
        except ModuleNotFoundError:
            module, class_name = place.rsplit(".", 1)
            owner = getattr(importlib.import_module(module), class_name)
        assert hasattr(owner, name), f"{place} has no {name}"
    assert set(draw.DECODINGS) == DECODINGS.keys() - {"easy-first"}  # which docs/extending.md adds
    for name, picture in draw.PICTURES.items():
        picture().save(tmp_path / f"{name}.svg")
        assert (DOCS / "pictures" / f"{name}.svg").read_text().count("<path") > 20
    with pytest.raises(ValueError, match="'encode' is not one of NAMES"):
        draw.Picture(10, 10).text(0, 0, "encode", code=True)


# -- links --------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path):
    """A small one, whose README.md the test writes."""
    for name, text in {
        "README.md": "",
        "docs/page.md": "# A page\n\n## `Encoder.run` & more\n\n## Twice\n\n## Twice\n",
        "docs/shown.md": "",
        "docs/_build/made.md": "[x](nowhere.md)",
        "results/README.md": '# Results\n\n<a id="run-1"></a>\n',
        "results/plot.png": "",
        "results/a.json": "",
        "examples/quora/run/README.md": "[x](nowhere.md)",
        "examples/quora/run.sh": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def broken(links, root, text, name="README.md"):
    (root / name).write_text(text)
    links._anchors_of.cache_clear()
    return [message.removeprefix(f"{name}:") for message in links.broken_links(root / name, root)]


@pytest.mark.parametrize(
    "target",
    [
        "docs/page.md",
        "docs/page.md#a-page",
        "docs/page.md#encoderrun--more",
        "docs/page.md#twice-1",
        "results",
        "results/#run-1",
        "#here-i-am",
        "examples/quora/run.sh",
        "https://example.org/nowhere",
        "mailto:a@example.org",
        "//example.org",
    ],
)
def test_links_that_lead_somewhere(links, repository, target):
    assert broken(links, repository, f"# Here I am\n\n| a |\n| --- |\n| [a link]({target}) |\n") == []


@pytest.mark.parametrize(
    "target, message",
    [
        ("docs/gone.md", "leads to nothing"),
        ("docs/page.md#twice-2", "leads to no heading of docs/page.md"),
        ("#there", "leads to no heading of README.md"),
        ("examples/quora/run.sh#usage", "leads to no heading of examples/quora/run.sh"),
        ("../elsewhere", "leads out of the repository"),
        ("/docs/page.md", "leads out of the repository"),
    ],
)
def test_links_that_do_not(links, repository, target, message):
    (repository.parent / "elsewhere").mkdir(exist_ok=True)
    assert broken(links, repository, f"# Here\n\nSome [link]({target}).\n") == [f"3: {target} {message}"]
    assert broken(links, repository, f"![a picture]({target})\n") == [f"1: {target} {message}"]
    link = f"[link]({target})"
    assert broken(links, repository, f"`{link}`\n\n    {link}\n\n```\n{link}\n```\n") == []


def test_what_is_made_is_not_checked(links, repository):
    (repository / "README.md").write_text("")
    names = {str(path.relative_to(repository)) for path in links.markdown_files(repository)}
    assert names == {"README.md", "docs/page.md", "docs/shown.md", "results/README.md"}


def test_links_fit_to_the_page_that_shows_them(links, repository):
    page, shown = repository / "docs/shown.md", repository / "results/README.md"
    pages = {shown: page}

    def fit(text, path=shown, page=page):
        return links.fit_to_site(text, path, page, pages, repository)

    assert fit("[a](a.json) ![p](plot.png)") == "[a](path:../results/a.json) ![p](../results/plot.png)"
    assert fit("[a](../README.md#a)") == "[a](path:../README.md)"  # a download has no headings
    assert fit("[p](../docs/page.md#twice)") == "[p](page.md#twice)"
    assert fit("the [`quora`](../examples/quora) recipe") == "the `quora` recipe"
    assert fit("[here](#run-1) [there](https://example.org)") == "[here](#run-1) [there](https://example.org)"
    other = repository / "docs/page.md"
    assert fit("[r](../results) [r](../results/README.md#run-1)", other, other) == "[r](shown.md) [r](shown.md#run-1)"


def test_no_link_of_the_repository_is_broken(links):
    files = links.markdown_files()
    assert DOCS / "index.md" in files and DOCS.parent / "README.md" in files and len(files) > 20
    assert [message for path in files for message in links.broken_links(path)] == []
