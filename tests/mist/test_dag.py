"""The head with paths against all paths, one by one."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_fairseq.mist import output_layer
from mist_fairseq.mist.batch import Batch
from mist_fairseq.mist.config import EncoderConfig
from mist_fairseq.mist.dag import Emissions, Paths, TransitionHead, best_path, path_log_likelihood
from mist_fairseq.mist.objective import Objective
from mist_fairseq.mist.path_search import NO_EDGE
from tests.helpers import assert_same_gradients, batch, encode, part, tiny_released
from tests.mist.test_mixing import plain_mix
from tests.mist.test_path_search import all_paths, plain_follow, random_edges

SOURCES, TARGETS = [9, 4, 13, 2, 7, 7], [5, 12, 1, 7, 2, 9]
OPTIONS = {"label_smoothing": 0.0, "glancing_ratio": 0.0}


def with_paths(dictionary, **sizes):
    """Without dropout."""
    sizes = {"head": "dag", "upsample": 2, "least_vertices": 14, "dropout": 0.0, "attention_dropout": 0.0} | sizes
    model = tiny_released(dictionary, **sizes)
    model.encoder.train()
    return model


def predict(model, pairs, **options):
    limits = model.limits
    given = model.encoder, pairs, model.tokenizer.special, limits.source, limits.target
    return Objective(**OPTIONS | options).predict(*given)


def learn(model, pairs, **options):
    loss, parts = Objective(**OPTIONS | options).losses(predict(model, pairs, **options), pairs)
    loss.backward()
    return loss, parts


def plain_log_likelihoods(emissions, edges, length, vertices):
    """That of each path of *length* tokens. *Shapes:* emissions (T, L), edges (L, L)."""
    found = {}
    for path in all_paths(vertices, length):
        steps = zip((0, *path), path, range(length))
        found[path] = sum(edges[before, place] + emissions[t, place] for before, place, t in steps)
    return found


@settings(max_examples=30)
@given(st.data())
def test_the_loss_and_its_gradients_are_those_of_all_paths(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 5)), min_size=1, max_size=3))
    sizes = [(vertices, min(length, vertices - 1)) for vertices, length in sizes]
    vertices, lengths = (torch.tensor(part) for part in zip(*sizes))
    B, T, L = len(sizes), int(lengths.max()), int(vertices.max())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    edges = random_edges(vertices, generator).double().requires_grad_()
    emissions = torch.randn(B, T, L, generator=generator, dtype=torch.float64).mul(3).requires_grad_()
    found = path_log_likelihood(emissions, edges, lengths, vertices)
    gradients = torch.autograd.grad(found.sum(), (emissions, edges))
    paths = [plain_log_likelihoods(emissions[b], edges[b], length, vertex) for b, (vertex, length) in enumerate(sizes)]
    expected = torch.stack([torch.stack(list(values.values())).logsumexp(0) for values in paths])
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected.sum(), (emissions, edges))):
        torch.testing.assert_close(one, other)
    best = best_path(emissions, edges, lengths, vertices)
    for row, values in enumerate(paths):
        assert best[row].tolist() == [*max(values, key=values.get), *[0] * (T - sizes[row][1])]


def test_edges_are_several_softmaxes_over_later_vertices():
    torch.manual_seed(0)
    config = EncoderConfig(50, hidden_size=12, heads=3)
    head, vertices = TransitionHead(config), [5, 2, 4]
    hidden = torch.randn(3, 5, 12)
    found = head(hidden, torch.tensor(vertices))
    query, key = head.query_key(hidden).chunk(2, -1)
    gates = head.gate(hidden).softmax(-1)
    for b, number in enumerate(vertices):
        for i, j in itertools.product(range(5), repeat=2):
            later = range(i + 1, number)
            if j not in later:
                assert found[b, i, j] == NO_EDGE
                continue
            share = 0
            for h in range(3):
                part = slice(4 * h, 4 * h + 4)
                scores = [(query[b, i, part] @ key[b, k, part] / 2).exp() for k in later]
                share = share + gates[b, i, h] * scores[j - i - 1] / sum(scores)
            torch.testing.assert_close(found[b, i, j], share.log(), atol=1e-5, rtol=1e-5)


def test_emissions_equal_a_whole_softmax(monkeypatch):
    monkeypatch.setattr(output_layer, "LOGITS_AT_A_TIME", 3 * 20)
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((8, 6), (20, 6), (20,)))
    wanted, of_log_p = torch.randint(20, (8, 4)), torch.randn(8, 4)
    log_p, tokens, scores = Emissions.apply(x, weight, bias, wanted, (3, 4))
    found = torch.autograd.grad(log_p, (x, weight, bias), of_log_p)
    logits = F.linear(x, weight, bias)
    plain = logits.log_softmax(-1).gather(1, wanted)
    torch.testing.assert_close(log_p, plain)
    for one, other in zip(found, torch.autograd.grad(plain, (x, weight, bias), of_log_p, retain_graph=True)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    logits[:, 3:5] = -torch.inf
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(scores, logits.log_softmax(-1).amax(-1))


@torch.no_grad()
def plain_pass(model, source, target):
    """The loss of one sentence, and the text that lookahead reads."""
    special, config = model.tokenizer.special, model.encoder.config
    # The graph is that of the bare source, whatever is mixed in.
    number = min(max(2 * int(source[1]), config.least_vertices), model.limits.target)
    tokens, state = torch.tensor([source[0]]), None
    state = encode(model, tokens, torch.tensor([len(source[0])]))
    masks = torch.full((1, number), special.mask)
    hidden = model.encoder.decode_target(masks, torch.tensor([number]), torch.arange(number), state)
    edges = model.encoder.edges(hidden[None], torch.tensor([number]))[0]
    log_p = model.encoder.token_logits(hidden).log_softmax(-1)  # (L, V)
    likelihood = path_log_likelihood(log_p[:, target].t()[None], edges[None], *torch.tensor([[len(target)], [number]]))
    predicted = log_p.clone()
    predicted[:, list(special.never_predicted)] = -torch.inf
    scores, best = predicted.log_softmax(-1).max(-1)
    return -float(likelihood), [int(best[place]) for place in plain_follow(edges + scores, number)]


def test_training_equals_a_plain_loop(dictionary):
    """L_NAT and L_MIST, whose source has the text that lookahead reads, and the length loss is as before."""
    model, sample = with_paths(dictionary), batch(SOURCES, TARGETS, dictionary)
    pairs, special = Batch(**sample["net_input"]), model.tokenizer.special
    found, nat, mist = predict(model, pairs), 0.0, 0.0
    for row, (size, length) in enumerate(zip(SOURCES, TARGETS)):
        source, target = pairs.src_tokens[row, :size].tolist(), pairs.target_tokens[row, :length].tolist()
        loss, text = plain_pass(model, (source, size), target)
        nat += loss
        mixed = plain_mix(text, source, model.limits.source, special.cls, special.sep)
        mist += plain_pass(model, (mixed, size), target)[0]
    assert abs(float(found.nat.loss) - nat) < 1e-2 and abs(float(found.mist.loss) - mist) < 1e-2
    assert torch.equal(found.nat.loss, found.nat.nll)
    without = predict(model, pairs, mist_loss_factor=0.0)
    assert without.mist is None and torch.equal(without.nat.loss, found.nat.loss)


@pytest.mark.parametrize("glancing", [0.0, 0.5])
def test_a_batch_gives_the_gradients_of_its_parts(dictionary, glancing):
    whole, parts = (with_paths(dictionary) for _ in range(2))
    torch.manual_seed(7)
    sample = batch(SOURCES, TARGETS, dictionary)
    learn(whole, Batch(**sample["net_input"]), glancing_ratio=glancing)
    for some in ([2], [0, 1, 3, 4, 5]):
        learn(parts, Batch(**part(sample, some)["net_input"]), glancing_ratio=glancing)
    assert_same_gradients(parts.encoder, whole.encoder)


def test_glancing_reveals_tokens_on_the_likeliest_path(dictionary):
    """As many as of a fixed length, each at its vertex."""
    model = with_paths(dictionary)
    pairs, special = Batch(**batch(SOURCES, TARGETS, dictionary)["net_input"]), model.tokenizer.special
    paths = Paths(model.encoder, pairs, special, model.limits.target)
    guess = paths.guess(paths.masks, encode(model, pairs.src_tokens, pairs.src_lengths))
    shown = pairs.target_tokens.clone()
    shown[:, 1::2] = special.mask
    placed = paths.place(shown, guess)
    for row, length in enumerate(TARGETS):
        expected = paths.masks[row].tolist()
        for t in range(0, length, 2):
            expected[guess.places[row, t]] = int(pairs.target_tokens[row, t])
        assert placed[row].tolist() == expected
        assert guess.places[row, length - 1] == paths.lengths[row] - 1
    wrong = (guess.seen != pairs.target_tokens) & (guess.places > 0)
    assert int(predict(model, pairs, glancing_ratio=0.5).revealed) == sum((wrong.sum(1) // 2).tolist())


def test_it_learns_its_batch(dictionary):
    model, pairs = with_paths(dictionary), Batch(**batch(SOURCES, TARGETS, dictionary)["net_input"])
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        _, parts = learn(model, pairs)
        for parameter in model.encoder.parameters():
            parameter.grad /= sum(TARGETS)
        optimizer.step()
    assert int(parts["correct"]) == int(parts["mist_correct"]) == sum(TARGETS)
    special = model.tokenizer.special
    paths = Paths(model.encoder, pairs, special, model.limits.target)
    guess = paths.guess(paths.masks, encode(model, pairs.src_tokens, pairs.src_lengths))
    for row, length in enumerate(TARGETS):
        assert guess.tokens[row, : guess.lengths[row]].tolist() == pairs.target_tokens[row, :length].tolist()


def test_bf16(dictionary):
    model, pairs = with_paths(dictionary), Batch(**batch(SOURCES, TARGETS, dictionary)["net_input"])
    expected, _ = learn(with_paths(dictionary), pairs)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = learn(model, pairs)
    assert found.dtype == torch.float32 and abs(found / expected - 1) < 0.05
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("option, value", [("label_smoothing", 0.1), ("order_agnostic_from", 5)])
def test_options_that_paths_do_not_have_are_refused(dictionary, option, value):
    pairs = Batch(**batch(SOURCES, TARGETS, dictionary)["net_input"])
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is {value}, expected 0 with --head dag"):
        predict(with_paths(dictionary), pairs, **{option: value})
