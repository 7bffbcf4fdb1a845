"""BERT's tokenizer."""

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from mist_fairseq.text.detokenize import join_words
from mist_fairseq.text.tokenizer import CLS, MASK, PAD, SEP, UNK, Tokenizer


class WordPiece(Tokenizer):
    """BERT's tokenizer over a ``vocab.txt``, ids unchanged (Devlin et al. 2018).

    Args:
        symbols: lines of ``vocab.txt``.
        lowercase, strip_accents, tokenize_chinese_chars: as in BERT's ``tokenizer_config.json``;
            ``strip_accents=None`` follows *lowercase*.

    Raises:
        ValueError: a special token is missing, or a line stands twice.
    """

    def __init__(
        self,
        symbols: list[str],
        lowercase: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        source: str = "vocab.txt",
    ):
        special = {name: symbols.index(name) for name in (PAD, UNK, CLS, SEP, MASK) if name in symbols}
        missing = [name for name in (PAD, UNK, CLS, SEP, MASK) if name not in special]
        if missing:
            raise ValueError(
                f"{source} has no {', '.join(missing)}: a masked-LM vocabulary (BERT's vocab.txt, one token a "
                "line) or a SentencePiece model is needed"
            )
        super().__init__(
            symbols,
            special,
            {
                "type": "wordpiece",
                "lowercase": lowercase,
                "strip_accents": strip_accents,
                "tokenize_chinese_chars": tokenize_chinese_chars,
            },
        )
        if len(self.indices) != len(symbols):
            raise ValueError(f"{source} has {len(symbols)} lines but only {len(self.indices)} different tokens")
        self._library = tokenizers.Tokenizer(
            models.WordPiece(self.indices, unk_token=UNK, max_input_chars_per_word=100)
        )
        # The slow BertTokenizer composes characters (NFC) before it looks at casing and accents.
        self._library.normalizer = normalizers.Sequence(
            [
                normalizers.BertNormalizer(
                    clean_text=True,
                    handle_chinese_chars=tokenize_chinese_chars,
                    strip_accents=False,
                    lowercase=False,
                ),
                normalizers.NFC(),
                normalizers.BertNormalizer(
                    clean_text=False,
                    handle_chinese_chars=False,
                    strip_accents=strip_accents,
                    lowercase=lowercase,
                ),
            ]
        )
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._continues = [symbol.startswith("##") and len(symbol) > 2 for symbol in symbols]

    def _encode_text(self, text):
        encoding = self._library.encode(text, add_special_tokens=False)
        return [
            (text[slice(*span)] if index == self.unk_index else token, index)
            for token, index, span in zip(encoding.tokens, encoding.ids, encoding.offsets)
        ]

    def _detokenize(self, ids, unknown):
        words: list[str] = []
        for index in ids:
            symbol = unknown if index == self.unk_index else self.symbols[index]
            if words and not self.starts_word(index):
                words[-1] += symbol[2:]
            else:
                words.append(symbol)
        return join_words(words)

    def starts_word(self, index):
        """Whether the token is none that continues a word, ``##...``."""
        return not self._continues[index]

    def _payload(self):
        return "".join(symbol + "\n" for symbol in self.symbols)
