"""A SentencePiece model as a tokenizer."""

import base64

from sentencepiece import SentencePieceProcessor

from mist_fairseq.mist.config import SpecialTokens
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018), ids unchanged.

    ``<s>``, ``</s>`` and the padding piece serve as [CLS], [SEP] and [PAD] where the model has them, and a
    control symbol ``[MASK]`` as [MASK]; what it lacks is appended behind its own pieces.

    Args:
        model: the serialized model (the bytes of ``sp.model``).
        source: what errors call the file.

    Raises:
        ValueError: the bytes are no SentencePiece model, or [MASK] is one of its ordinary pieces.
    """

    def __init__(self, model: bytes, source: str = "sp.model"):
        self._processor = sp = SentencePieceProcessor()
        try:
            sp.LoadFromSerializedProto(model)
            symbols = [sp.IdToPiece(index) for index in range(sp.GetPieceSize())]
        except (RuntimeError, UnicodeDecodeError) as error:  # the second of a piece
            raise ValueError(f"{source} is not a SentencePiece model: {error}") from error
        ids = {UNK: sp.unk_id(), CLS: sp.bos_id(), SEP: sp.eos_id(), PAD: sp.pad_id(), MASK: -1}
        if MASK in symbols:
            ids[MASK] = symbols.index(MASK)
            if not sp.IsControl(ids[MASK]):
                raise ValueError(
                    f"{source} has [MASK] as an ordinary piece, so text could contain it: train the model with "
                    "--control_symbols=[MASK] or without it"
                )
        for name, index in ids.items():
            if index < 0:
                ids[name] = len(symbols)
                symbols.append(name)
        super().__init__(
            symbols,
            SpecialTokens(ids[PAD], ids[UNK], ids[CLS], ids[SEP], ids[MASK]),
            starts_word=[symbol.startswith("\u2581") for symbol in symbols],
            settings={"type": "sentencepiece"},
            content=base64.encodebytes(model).decode("ascii"),
        )

    def _encode_text(self, text: str) -> list[tuple[str, int]]:
        # As a piece, an unknown token shows its text.
        return list(zip(self._processor.EncodeAsPieces(text), self._processor.EncodeAsIds(text)))

    def _join(self, ids: list[int], unknown: str) -> str:
        pieces = []
        for index in ids:
            if index == self.special.unk:
                pieces.append(f" {unknown} ")  # spaced as SentencePiece spaces its own mark
            elif index >= self._processor.GetPieceSize() or self._processor.IsControl(index):
                pieces.append(f" {self.symbols[index]} ")  # SentencePiece itself would decode it to nothing
            else:
                pieces.append(self.symbols[index])
        return " ".join(self._processor.DecodePieces(pieces).split())
