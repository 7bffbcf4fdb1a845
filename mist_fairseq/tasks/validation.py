"""BLEU and ROUGE-L over all batches of a validation, for every task here."""

import sacrebleu
from fairseq.logging import metrics
from sacrebleu.metrics.bleu import BLEUScore

_ORDERS = range(4)


def bleu_counts(bleu: BLEUScore) -> dict[str, int]:
    """What ``log_scores`` adds up of a batch: n-gram counts and lengths, under fairseq's names."""
    counts = {f"_bleu_counts_{n}": bleu.counts[n] for n in _ORDERS} | {
        f"_bleu_totals_{n}": bleu.totals[n] for n in _ORDERS
    }
    return {**counts, "_bleu_sys_len": bleu.sys_len, "_bleu_ref_len": bleu.ref_len}


def log_scores(logging_outputs: list[dict]):
    """Log ``bleu`` and ``rouge_l``, whichever the batches have counts of."""
    names = {name for log in logging_outputs for name in log if name.startswith(("_bleu_", "_rouge_l_"))}
    for name in sorted(names):
        # Plain numbers: a checkpoint with numpy arrays among its metrics would not load safely.
        metrics.log_scalar_sum(name, sum(float(log.get(name, 0)) for log in logging_outputs))
    if "_bleu_sys_len" in names:
        metrics.log_derived("bleu", _bleu)
    if "_rouge_l_sum" in names:
        metrics.log_derived("rouge_l", _rouge_l)


def _bleu(meters) -> float:
    """Corpus BLEU from summed n-gram counts."""

    def total(name):
        return int(meters[f"_bleu_{name}"].sum)

    counts, totals = ([total(f"{kind}_{n}") for n in _ORDERS] for kind in ("counts", "totals"))
    bleu = sacrebleu.BLEU.compute_bleu(counts, totals, total("sys_len"), total("ref_len"), smooth_method="exp")
    return round(float(bleu.score), 2)


def _rouge_l(meters) -> float:
    """Mean ROUGE-L of the sentences, in percent."""
    return round(100 * meters["_rouge_l_sum"].sum / meters["_rouge_l_count"].sum, 2)
