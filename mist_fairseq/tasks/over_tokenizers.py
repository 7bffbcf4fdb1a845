"""What all tasks of mist_fairseq have in common."""

from mist_fairseq.data.dictionary import load_dictionary
from mist_fairseq.patches.text_input import install_interactive
from mist_fairseq.tasks.finite import StopsAtNaN
from mist_fairseq.tasks.resuming import Resumes
from mist_fairseq.tasks.shards import CountsAllBatches

PREPROCESS = (
    "the dictionary is a tokenizer and is not built from data: run fairseq-preprocess --task mist with "
    "--joined-dictionary --srcdict FILE, a BERT vocab.txt, a SentencePiece model or BART's dict.txt"
)


class OverTokenizers(StopsAtNaN, CountsAllBatches, Resumes):
    """Mixed into a task, before its class: its dictionary is a tokenizer, the same for source and target."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        install_interactive()

    @classmethod
    def load_dictionary(cls, filename):
        """Read a ``vocab.txt``, a SentencePiece model or a saved dictionary."""
        return load_dictionary(filename)

    @classmethod
    def build_dictionary(cls, filenames, workers=1, threshold=-1, nwords=-1, padding_factor=8):
        """Refuse to count a vocabulary from data."""
        raise ValueError(PREPROCESS)


def check_same(source, target, cfg):
    """Refuse a source dictionary that differs from the target's; *cfg* is the task's configuration."""
    if source != target:
        names = f"dict.{cfg.source_lang}.txt and dict.{cfg.target_lang}.txt"
        raise ValueError(f"{names} of {cfg.data} differ. One is damaged, or {PREPROCESS}")
