"""A SentencePiece model as a tokenizer."""

import base64

from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer


class SentencePiece(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018), ids unchanged.

    ``<s>``, ``</s>`` and the padding piece serve as [CLS], [SEP] and [PAD] where the model has them, and a
    control symbol ``[MASK]`` as [MASK]; what it lacks is appended behind its own pieces.

    Args:
        model: the serialized model (the bytes of ``sp.model``).

    Raises:
        ValueError: the bytes are no SentencePiece model, or [MASK] is one of its ordinary pieces.
    """

    def __init__(self, model: bytes, source: str = "sp.model"):
        from sentencepiece import SentencePieceProcessor  # only where such a model is used

        self.processor = SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model)
            symbols = [self.processor.IdToPiece(i) for i in range(self.processor.GetPieceSize())]
        except (RuntimeError, UnicodeDecodeError) as error:  # the second of its pieces
            raise ValueError(f"{source} is not a SentencePiece model: {error}") from error
        sp = self.processor
        special = {UNK: sp.unk_id(), CLS: sp.bos_id(), SEP: sp.eos_id(), PAD: sp.pad_id(), MASK: -1}
        if MASK in symbols:
            special[MASK] = symbols.index(MASK)
            if not sp.IsControl(special[MASK]):
                raise ValueError(
                    f"{source} has [MASK] as an ordinary piece, so text could contain it: train the model with "
                    "--control_symbols=[MASK] or without it"
                )
        for name, index in special.items():
            if index < 0:
                special[name] = len(symbols)
                symbols.append(name)
        self._model = model
        super().__init__(symbols, special, {"type": "sentencepiece"})
        self._starts = [symbol.startswith("\u2581") for symbol in symbols]

    def _encode_text(self, text):
        # Encoded as pieces, an unknown one shows its text.
        return list(zip(self.processor.EncodeAsPieces(text), self.processor.EncodeAsIds(text)))

    def _detokenize(self, ids, unknown):
        pieces = []
        for index in ids:
            if index == self.unk_index:
                pieces.append(f" {unknown} ")  # spaced as SentencePiece spaces its own mark
            elif index >= self.processor.GetPieceSize() or self.processor.IsControl(index):
                pieces.append(f" {self.symbols[index]} ")  # SentencePiece itself would decode it to nothing
            else:
                pieces.append(self.symbols[index])
        return " ".join(self.processor.DecodePieces(pieces).split())

    def starts_word(self, index):
        """Whether the token begins with a space."""
        return self._starts[index]

    def _payload(self):
        return base64.encodebytes(self._model).decode("ascii")
