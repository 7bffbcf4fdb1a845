"""A SentencePiece model as a tokenizer."""

import base64
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer, number_symbols

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


_XLMRS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")

# Where transformers has other ids than the SentencePiece model: what stands first instead of how many of its pieces.
# <mask> stands behind them all.
LAYOUTS = {
    "xlmroberta": (("<s>", "<pad>", "</s>", "<unk>"), 3),
    "camembert": (("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1),
}


@dataclass(kw_only=True, eq=False, repr=False)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018); ``sentencepiece_tokenizer`` makes one."""

    processor: "SentencePieceProcessor"
    ids: list[int]  # of the model's pieces
    spaced: set[int]  # ids of what SentencePiece itself would decode to nothing

    def _encode_text(self, text: str) -> list[tuple[str, int]]:
        # As a piece, an unknown token shows its text.
        ids = [self.ids[number] for number in self.processor.EncodeAsIds(text)]
        return list(zip(self.processor.EncodeAsPieces(text), ids))

    def _join(self, ids: list[int], unknown: str) -> str:
        pieces = [self.symbols[index] for index in ids]
        for i, index in enumerate(ids):
            if index == self.special.unk:
                pieces[i] = f" {unknown} "  # spaced as SentencePiece spaces its own mark
            elif index in self.spaced:
                pieces[i] = f" {pieces[i]} "
        return " ".join(self.processor.DecodePieces(pieces).split())


def sentencepiece_tokenizer(
    model: bytes, source: str = "sp.model", layout: str | None = None
) -> SentencePieceTokenizer:
    """Make a tokenizer of a serialized model, the bytes of ``sp.model``; *source* is what errors call the file.

    Without a *layout* ids are the model's. ``<s>``, ``</s>`` and the padding piece serve as [CLS], [SEP] and [PAD]
    where the model has them, and a control symbol ``[MASK]`` as [MASK]; what it lacks is appended behind its own
    pieces. With one of ``LAYOUTS`` ids and special tokens are those that transformers has for this family.

    Raises:
        ValueError: the bytes are no SentencePiece model, or [MASK] is one of its ordinary pieces.
        ImportError: SentencePiece is not installed.
    """
    try:
        from sentencepiece import SentencePieceProcessor  # an ONNX folder of another tokenizer needs no such package
    except ImportError as error:
        raise ImportError(f"{source} needs SentencePiece, which is not installed: pip install sentencepiece") from error

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        symbols = [processor.IdToPiece(index) for index in range(processor.GetPieceSize())]
    except (RuntimeError, UnicodeDecodeError) as error:  # the second of a piece
        raise ValueError(f"{source} is not a SentencePiece model: {error}") from error
    settings: dict[str, object] = {"type": "sentencepiece"}
    if layout is None:
        numbers, special = list(range(len(symbols))), _find_special(processor, symbols, source)
    else:
        settings["layout"] = layout
        first, dropped = LAYOUTS[layout]
        pieces, symbols = symbols, [*first, *symbols[dropped:], "<mask>"]
        names, special = number_symbols(symbols, _XLMRS, source, "the SentencePiece model of XLM-R or CamemBERT")
        numbers = [names.get(piece, special.unk) for piece in pieces]
    plain = {index for number, index in enumerate(numbers) if not processor.IsControl(number)} - {special.unk}
    spaced = set(range(len(symbols))) - plain
    others = tuple(sorted(spaced - {special.pad, special.unk, special.cls, special.sep, special.mask}))
    return SentencePieceTokenizer(
        processor=processor,
        ids=numbers,
        spaced=spaced,
        symbols=symbols,
        special=replace(special, others=others),
        starts_word=[symbol.startswith("\u2581") for symbol in symbols],
        settings=settings,
        content=base64.encodebytes(model).decode("ascii"),
    )


def _find_special(processor: "SentencePieceProcessor", symbols: list[str], source: str) -> SpecialTokens:
    """The special tokens of a model with its own ids; those that it lacks are appended to *symbols*."""
    mask = symbols.index(MASK) if MASK in symbols else -1
    if mask >= 0 and not processor.IsControl(mask):
        advice = "train the model with --control_symbols=[MASK] or without it"
        raise ValueError(f"{source} has [MASK] as an ordinary piece, so text could contain it: {advice}")
    ids = {UNK: processor.unk_id(), CLS: processor.bos_id(), SEP: processor.eos_id(), PAD: processor.pad_id()}
    ids[MASK] = mask
    for name in [name for name, index in ids.items() if index < 0]:
        ids[name] = len(symbols)
        symbols.append(name)
    return SpecialTokens(ids[PAD], ids[UNK], ids[CLS], ids[SEP], ids[MASK])
