"""A SentencePiece model as a tokenizer."""

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


@dataclass(kw_only=True, eq=False, repr=False)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018), ids unchanged; ``sentencepiece_tokenizer`` makes one."""

    processor: "SentencePieceProcessor"

    def _encode_text(self, text: str) -> list[tuple[str, int]]:
        # As a piece, an unknown token shows its text.
        return list(zip(self.processor.EncodeAsPieces(text), self.processor.EncodeAsIds(text)))

    def _join(self, ids: list[int], unknown: str) -> str:
        pieces = [self.symbols[index] for index in ids]
        for i, index in enumerate(ids):
            if index == self.special.unk:
                pieces[i] = f" {unknown} "  # spaced as SentencePiece spaces its own mark
            elif index >= self.processor.GetPieceSize() or self.processor.IsControl(index):
                pieces[i] = f" {pieces[i]} "  # SentencePiece itself would decode it to nothing
        return " ".join(self.processor.DecodePieces(pieces).split())


def sentencepiece_tokenizer(model: bytes, source: str = "sp.model") -> SentencePieceTokenizer:
    """Make a tokenizer of a serialized model, the bytes of ``sp.model``; *source* is what errors call the file.

    ``<s>``, ``</s>`` and the padding piece serve as [CLS], [SEP] and [PAD] where the model has them, and a
    control symbol ``[MASK]`` as [MASK]; what it lacks is appended behind its own pieces.

    Raises:
        ValueError: the bytes are no SentencePiece model, or [MASK] is one of its ordinary pieces.
    """
    from sentencepiece import SentencePieceProcessor  # an ONNX folder of another tokenizer needs no such package

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        symbols = [processor.IdToPiece(index) for index in range(processor.GetPieceSize())]
    except (RuntimeError, UnicodeDecodeError) as error:  # the second of a piece
        raise ValueError(f"{source} is not a SentencePiece model: {error}") from error
    mask = symbols.index(MASK) if MASK in symbols else -1
    if mask >= 0 and not processor.IsControl(mask):
        advice = "train the model with --control_symbols=[MASK] or without it"
        raise ValueError(f"{source} has [MASK] as an ordinary piece, so text could contain it: {advice}")
    ids = {UNK: processor.unk_id(), CLS: processor.bos_id(), SEP: processor.eos_id(), PAD: processor.pad_id()}
    ids[MASK] = mask
    for name in [name for name, index in ids.items() if index < 0]:
        ids[name] = len(symbols)
        symbols.append(name)
    return SentencePieceTokenizer(
        processor=processor,
        symbols=symbols,
        special=SpecialTokens(ids[PAD], ids[UNK], ids[CLS], ids[SEP], ids[MASK]),
        starts_word=[symbol.startswith("\u2581") for symbol in symbols],
        settings={"type": "sentencepiece"},
        content=base64.encodebytes(model).decode("ascii"),
    )
