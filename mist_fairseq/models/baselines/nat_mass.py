"""NAT initialised from MASS, the paper's baseline: MASS's encoder-decoder trained and run as the encoder model is."""

from dataclasses import dataclass
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II

from mist_fairseq.data.dictionary import TokenizerDictionary
from mist_fairseq.generate.decoding import option
from mist_fairseq.mist.config import ENCODER_DECODER_OPTION_NAMES, EncoderDecoderConfig
from mist_fairseq.mist.encoder_decoder import EncoderDecoder
from mist_fairseq.models.mist_model import PRECISIONS, MistModel
from mist_fairseq.pretrained.mass_and_bang import ENCODER_DECODER, PRETRAINED_HELP, check_mass_vocabulary, read_mass


@dataclass
class EncoderDecoderOptions(FairseqDataclass):
    """The sizes of MASS-base, which are BANG-base's, too."""

    encoder_layers: int = option(6, "number of encoder layers")
    decoder_layers: int = option(6, "number of decoder layers")
    encoder_embed_dim: int = option(768, "hidden size of encoder and decoder")
    encoder_ffn_embed_dim: int = option(3072, "inner size of the feed-forward networks")
    encoder_attention_heads: int = option(12, "number of attention heads")
    dropout: float = option(0.1, "dropout of embeddings and sub-layers")
    attention_dropout: float = option(0.1, "dropout of attention weights")
    activation_dropout: float = option(0.1, "dropout inside the feed-forward networks")


@dataclass
class NatMassConfig(EncoderDecoderOptions):
    """Defaults are MASS-base."""

    pretrained: Optional[str] = option(None, PRETRAINED_HELP)
    length_classes: int = option(512, "classes of the length classifier")
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
