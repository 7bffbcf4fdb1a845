"""NAT initialised from MASS, the paper's baseline: MASS's encoder-decoder trained and run as the encoder model is."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.mist.config import ENCODER_DECODER_OPTION_NAMES, EncoderDecoderConfig
from mist_fairseq.mist.encoder_decoder import EncoderDecoder
from mist_fairseq.models.mist import PRECISIONS, MistModel
from mist_fairseq.pretrained.mass_and_bang import ENCODER_DECODER, PRETRAINED_HELP, check_mass_vocabulary, read_mass


@dataclass
class NatMassConfig(FairseqDataclass):
    """Defaults are MASS-base."""

    pretrained: Optional[str] = field(default=None, metadata={"help": PRETRAINED_HELP})
    encoder_layers: int = field(default=6, metadata={"help": "number of encoder layers"})
    decoder_layers: int = field(default=6, metadata={"help": "number of decoder layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "hidden size of encoder and decoder"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "inner size of the feed-forward networks"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "number of attention heads"})
    length_classes: int = field(default=512, metadata={"help": "classes of the length classifier"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and sub-layers"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.1, metadata={"help": "dropout inside the feed-forward networks"})
    precision: PRECISIONS = II("task.precision")


@register_model("nat_mass", dataclass=NatMassConfig)
class NatMassModel(MistModel):
    """``MistModel`` over an ``EncoderDecoder``. Args: as there."""

    architecture = "nat_mass"

    @classmethod
    def build_encoder(cls, cfg: NatMassConfig, vocab_size: int) -> EncoderDecoder:
        """The encoder-decoder with the sizes of *cfg*."""
        sizes = {size: getattr(cfg, option) for option, size in ENCODER_DECODER_OPTION_NAMES.items()}
        return EncoderDecoder(EncoderDecoderConfig(vocab_size, **sizes))

    @classmethod
    def pretrained_sizes(cls, folder: str, dictionary: TokenizerDictionary) -> dict[str, int]:
        """None: the folder holds no configuration. Refuses another vocabulary than the folder's."""
        check_mass_vocabulary(folder, dictionary.symbols)
        return {}

    def load_pretrained(self, folder: str):
        """Load MASS's weights; only the length classifier starts at random. Errors as in ``read_mass``."""
        own = self.encoder.state_dict()
        self.encoder.load_state_dict(own | read_mass(folder, own, ENCODER_DECODER, self.dictionary.pad() + 1))
