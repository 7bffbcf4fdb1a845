import torch

from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.encoder import Encoder
from mist_fairseq.mist.heads import likeliest_tokens, likeliest_with_scores
from tests.helpers import encode, sources, tiny_released

NEVER = (0, 2, 4)


def test_length_is_read_from_the_mean_of_the_source(dictionary):
    model = tiny_released(dictionary)
    state = encode(model, *sources([9, 3], dictionary))
    logits = model.encoder.length_logits(state)
    for row, length in enumerate((9, 3)):
        expected = state.hidden[row, :length].mean(0) @ model.encoder.length_head.weight.T
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


def test_never_predicts_pad_cls_mask():
    logits = torch.randn(200, 50)  # more than one chunk
    logits[:, NEVER] = 100.0
    allowed = [token for token in range(50) if token not in NEVER]
    expected = [allowed[int(row[allowed].argmax())] for row in logits]
    scores = torch.tensor([float(row[allowed].log_softmax(-1).max()) for row in logits])
    before = logits.clone()
    assert likeliest_tokens(logits, NEVER).tolist() == expected and torch.equal(logits, before)
    tokens, found = likeliest_with_scores(logits, NEVER)
    assert tokens.tolist() == expected
    torch.testing.assert_close(found, scores)


def test_untied_head_starts_as_a_copy():
    encoder = Encoder(EncoderConfig(50, 16, 1, 2, 32, untie_head=True))
    assert torch.equal(encoder.head.weight, encoder.word_embeddings.weight)
    assert encoder.head.weight.data_ptr() != encoder.word_embeddings.weight.data_ptr()
