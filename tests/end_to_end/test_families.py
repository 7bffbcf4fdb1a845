"""From a folder that transformers saved, model and tokenizer, by the commands to its answers."""

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors, trainers

from mist_fairseq import MistGenerator
from mist_fairseq.hub.onnx_generator import OnnxGenerator
from tests.end_to_end.conftest import LIMITS, TRAINING, preprocess, run
from tests.end_to_end.test_export import export

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
FAMILIES = {
    "mpnet": ("MPNet", dict(SIZES, max_position_embeddings=82)),
    "modernbert": ("ModernBert", dict(SIZES, max_position_embeddings=80, local_attention=8)),
}


def save_family(family: str, text, folder):
    """A byte-level BPE of the texts, which knows case, and a random model for it."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    backend.train([str(text / "train.src"), str(text / "train.tgt")], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="<s>", sep_token="</s>", **names)
    fast.save_pretrained(folder)
    name, sizes = FAMILIES[family]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(vocab_size=len(fast), pad_token_id=1, **sizes)
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_answers_and_is_exported(family, text, tmp_path):
    encoder, data, saved = tmp_path / "encoder", tmp_path / "bin", tmp_path / "checkpoints"
    save_family(family, text, encoder)
    preprocess(text, encoder, data)
    arguments = [data, "--arch", "mist_base", "--pretrained", encoder, *LIMITS, *TRAINING, "--max-update", "3"]
    run("train", *arguments, "--save-dir", saved)
    checkpoint = saved / "checkpoint_last.pt"
    for to in ("folder", "onnx", "huggingface"):
        assert not export(checkpoint, "--data", data, "--to", to, "--out", tmp_path / to)
    sources = [line for line in (text / "test.src").read_text().split("\n") if line and "[SEP]" not in line][:12]
    ours = MistGenerator.from_pretrained(str(tmp_path / "folder"), accelerate="none")
    onnx = OnnxGenerator.from_pretrained(str(tmp_path / "onnx"))
    for how in (dict(), dict(decoding="mist", iterations=2), dict(decoding="mask-predict", iterations=3)):
        expected, found = (each.generate(sources, batch_size=5, return_scores=True, **how) for each in (ours, onnx))
        assert [output.text for output in found] == [output.text for output in expected]
        assert [output.score for output in found] == pytest.approx([output.score for output in expected], abs=1e-4)
    for generator in (
        MistGenerator.from_pretrained(str(tmp_path / "folder"), accelerate="none", precision="bf16"),
        OnnxGenerator.from_pretrained(str(tmp_path / "onnx"), "int8"),
    ):
        assert len(generator.generate(sources)) == len(sources)
    ids = torch.tensor([[0, *(index for _, index in ours.tokenizer.encode(sources[0])), 2]])
    S = ids.shape[1]
    with torch.no_grad():
        plain = transformers.AutoModel.from_pretrained(tmp_path / "huggingface").eval()
        expected = plain(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        hidden = ours.encoder.encode_source(ids, torch.tensor([S]), torch.arange(S)).hidden
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)
