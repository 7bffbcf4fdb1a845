"""MASS (Song et al. 2019), the paper's autoregressive baseline: fairseq's transformer with MASS's sizes and weights."""

from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel, base_architecture

from mist_fairseq.models.mist_model import set_defaults
from mist_fairseq.pretrained.mass_and_bang import (
    POSITIONS,
    PRETRAINED_HELP,
    TRANSFORMER,
    check_mass_vocabulary,
    read_mass,
)


@register_model("mass")
class MassModel(TransformerModel):
    """fairseq's transformer, with ``--pretrained``. Args: as fairseq's."""

    @classmethod
    def add_args(cls, parser):
        """fairseq's options and ``--pretrained``."""
        super().add_args(parser)
        parser.add_argument("--pretrained", metavar="DIR", help=PRETRAINED_HELP)

    @classmethod
    def build_model(cls, args, task):
        """Build the model; when training starts, with ``--pretrained``. Errors as of ``read_mass``."""
        limit = task.max_positions()[0]
        if limit > POSITIONS:
            raise ValueError(f"--max-source-positions {limit} exceeds MASS's {POSITIONS} positions: lower it")
        # The tables of positions are MASS's, whatever the task cuts its sources to.
        args.max_source_positions = args.max_target_positions = POSITIONS
        model = super().build_model(args, task)
        if args.pretrained:
            check_mass_vocabulary(args.pretrained, task.source_dictionary.tokenizer.symbols)
            model.load_state_dict(read_mass(args.pretrained, model.state_dict(), TRANSFORMER), strict=False)
            args.pretrained = None  # in what checkpoints store: these need the folder no more
        return model


@register_model_architecture("mass", "mass_base")
def mass_base(args):
    """6 + 6 layers, 768 wide, 12 heads: MASS-base."""
    args.encoder_learned_pos = args.decoder_learned_pos = args.layernorm_embedding = args.share_all_embeddings = True
    sizes = dict(encoder_embed_dim=768, encoder_ffn_embed_dim=3072, encoder_attention_heads=12)
    set_defaults(args, **sizes, attention_dropout=0.1, activation_dropout=0.1, activation_fn="gelu", pretrained=None)
    set_defaults(args, decoder_attention_heads=args.encoder_attention_heads)
    base_architecture(args)
