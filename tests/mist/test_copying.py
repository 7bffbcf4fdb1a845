"""What is copied, against plain loops in probabilities, and its gradients, against autograd's over all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist import output_layer
from mist_fairseq.mist.copying import Copies, CopyHead, add_copies_
from mist_fairseq.mist.encoder import SourceState
from mist_fairseq.mist.output_layer import OutputLayer, predicted_tokens, token_loss
from mist_fairseq.mist.packing import real_positions

V, D, NEVER = 11, 5, (0, 2)


def some_copies(rows: int, S: int, generator: torch.Generator) -> Copies:
    """Sources with repeated tokens and, but in the first row, padding, which is token 1."""
    lengths = torch.randint(1, S + 1, (rows, 1), generator=generator)
    lengths[0] = S
    padding = torch.arange(S) >= lengths
    tokens = torch.randint(2, V, (rows, S), generator=generator).masked_fill(padding, 1)
    scores = 3 * torch.randn(rows, S, generator=generator)
    scores = scores.masked_fill(padding, -math.inf)
    return Copies(scores.requires_grad_(), tokens, together_of(scores, tokens))


def together_of(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """In plain loops: what all places with the same token have together; nothing is next to nothing."""
    sums = [
        [sum(math.exp(score) for score, other in zip(*row) if other == token) for token in row[1]]
        for row in zip(scores.tolist(), tokens.tolist())
    ]
    return torch.tensor(sums).clamp(min=1e-37).log()


def plain_odds(logits, copies: Copies) -> list[list[float]]:
    """exp(logit of v) + the sum over places that hold v of exp(score), each (N, V)."""
    odds = [[math.exp(logit) for logit in row] for row in logits.tolist()]
    for n, (scores, tokens) in enumerate(zip(copies.scores.tolist(), copies.tokens.tolist())):
        for score, token in zip(scores, tokens):
            odds[n][token] += math.exp(score)
    return odds


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 8), st.integers(0, 1000))
def test_the_odds_are_those_of_choosing_and_of_copying_from_each_place(rows, S, seed):
    generator = torch.Generator().manual_seed(seed)
    copies, logits = some_copies(rows, S, generator), torch.randn(rows, V, generator=generator)
    expected = torch.tensor(plain_odds(logits, copies))
    both = logits.clone()
    chosen, either = add_copies_(both, copies)
    of_choice, of_copy = (chosen - either).exp(), (copies.scores - either).exp()
    torch.testing.assert_close(both.exp(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_choice, (logits.exp() / expected).gather(1, copies.tokens), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_copy, copies.scores.exp() / expected.gather(1, copies.tokens), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("logit, score", [(1e4, 0.0), (0.0, 1e4), (-1e4, 0.0), (0.0, -1e4), (-math.inf, 3.0)])
def test_extremes_are_no_nan(logit, score):
    """One is as good as certain, or impossible; the second place is padding."""
    logits = torch.full((1, 4), logit)
    copies = Copies(torch.tensor([[score, -math.inf]]), torch.tensor([[3, 1]]), torch.tensor([[score, score - 87]]))
    chosen, either = add_copies_(logits, copies)
    shares = (chosen - either).exp(), (copies.scores - either).exp()
    assert float(logits[0, 3]) == pytest.approx(max(logit, score), abs=0.01)
    for of_choice, of_copy in zip(shares[0][0].tolist(), shares[1][0].tolist()):
        assert 0 <= of_choice <= 1 and 0 <= of_copy <= 1
    assert float(shares[0][0, 0] + shares[1][0, 0]) == pytest.approx(1)


@settings(max_examples=60)
@given(
    st.integers(1, 150),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([V, 10**6]),
    st.integers(0, 1000),
)
def test_the_loss_and_its_gradients_equal_autograds(rows, S, smoothing, at_a_time, seed):
    generator = torch.Generator().manual_seed(seed)
    copies = some_copies(rows, S, generator)
    x, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in [(rows, D), (V, D), (V,)])
    target = torch.randint(0, V, (rows,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_layer, "LOGITS_AT_A_TIME", at_a_time)
        loss, nll, tokens = token_loss(OutputLayer(x, weight, bias), target, smoothing, NEVER, copies)
        assert torch.equal(predicted_tokens(OutputLayer(x, weight, bias), NEVER, copies), tokens)
    held = torch.nn.functional.one_hot(copies.tokens, V).double()  # (N, S, V)
    odds = (x.double() @ weight.double().t() + bias).exp() + (copies.scores.double().exp()[:, :, None] * held).sum(1)
    p = odds / odds.sum(1, keepdim=True)
    of_gold = -p.gather(1, target[:, None])[:, 0].log()
    expected = ((1 - smoothing) * of_gold - smoothing * p.log().mean(1)).sum()
    torch.testing.assert_close(loss, expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nll, of_gold.sum().detach().float(), rtol=1e-4, atol=1e-4)
    assert tokens.tolist() == p.index_fill(1, torch.tensor(NEVER), -1).argmax(1).tolist()
    inputs = x, weight, bias, copies.scores
    for one, other in zip(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs)):
        torch.testing.assert_close(one, other.nan_to_num(0.0), rtol=1e-4, atol=1e-4)


def test_a_position_scores_the_real_ones_of_its_own_source():
    torch.manual_seed(1)
    B, S, T, lengths, target_lengths = 3, 4, 3, torch.tensor([4, 2, 3]), torch.tensor([2, 3, 1])
    head, source, tokens = CopyHead(D), torch.randn(B, S, D), torch.randint(0, 3, (B, S))
    state = SourceState([], [], source, lengths, tokens)
    index = real_positions(target_lengths, T)
    hidden = torch.randn(len(index), D)
    copies = head.copies(hidden, index, T, state)
    for n, place in enumerate(index.tolist()):
        sentence = place // T
        query = [sum(w * h for w, h in zip(row, hidden[n])) + b for row, b in zip(head.weight, head.bias)]
        for s in range(S):
            expected = sum(q * h for q, h in zip(query, source[sentence, s])) / D**0.5
            score = float(copies.scores[n, s])
            assert score == pytest.approx(float(expected), abs=1e-5) if s < lengths[sentence] else score == -math.inf
        assert copies.tokens[n].tolist() == tokens[sentence].tolist()
    real = copies.scores > -math.inf
    torch.testing.assert_close(copies.together[real], together_of(copies.scores, copies.tokens)[real])
    assert copies.together.isfinite().all()
    some = torch.tensor([4, 1])
    for part, whole in zip(head.copies(hidden[some], index[some], T, state), copies):
        torch.testing.assert_close(part, whole[some])
