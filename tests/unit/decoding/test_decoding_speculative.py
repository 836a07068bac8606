"""Speculative Jacobi decoding leaves the distribution of tokens as it is: chi-square tests on a known model."""

import torch
from scipy.stats import chisquare

from mentor.decoding.filters import invert
from mentor.decoding.speculative import first_drafts, settle

CODES, TOKENS, COUNT = 4, 5, 40_000


def probabilities(ids: torch.Tensor) -> torch.Tensor:
    """A model with a long memory: what follows depends on all codes before, in their order."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(TOKENS + 1, CODES, CODES, generator=generator) * 1.5
    base = torch.randn(TOKENS + 1, CODES, generator=generator)
    length = ids.shape[1]
    logits = base[length] + sum(table[length - at, ids[:, at]] / (length - at) for at in range(length))
    return logits.expand(len(ids), CODES).softmax(dim=-1)


def exact() -> torch.Tensor:
    """The probability of every sequence."""
    sequences = torch.cartesian_prod(*[torch.arange(CODES)] * TOKENS)
    chance = torch.ones(len(sequences))
    for at in range(TOKENS):
        chance = chance * probabilities(sequences[:, :at]).gather(1, sequences[:, at : at + 1]).squeeze(1)
    return chance


def index(ids: torch.Tensor) -> torch.Tensor:
    return (ids * CODES ** torch.arange(TOKENS - 1, -1, -1)).sum(dim=1)


def jacobi(places: int) -> tuple[torch.Tensor, float]:
    """Sequences drawn with a window of `places` tokens, and how many passes each took."""
    generator = torch.Generator().manual_seed(places)
    ids = torch.zeros(COUNT, TOKENS + 2 * places, dtype=torch.long)
    first = probabilities(ids[:, :0])
    ids[:, 0] = invert(first, torch.rand(COUNT, generator=generator))
    drafts = first_drafts(first, torch.rand(COUNT, places - 1, generator=generator))
    settled, passes = torch.ones(COUNT, dtype=torch.long), 0
    while (settled < TOKENS).any():
        passes += (settled < TOKENS).sum().item()
        predicted = torch.zeros(COUNT, places, CODES)
        for length in range(1, TOKENS + 1):
            rows = (settled == length).nonzero().squeeze(1)
            sequence = torch.cat((ids[rows, :length], drafts.ids[rows]), dim=1)
            for place in range(places):
                # Past the last token anything may stand.
                predicted[rows, place] = probabilities(sequence[:, : min(length + place, TOKENS)])
        tokens, counts, drafts = settle(drafts, predicted, torch.rand(COUNT, 2 * places, generator=generator))
        open_ = settled < TOKENS
        ids[open_] = ids[open_].scatter(1, (settled.unsqueeze(1) + torch.arange(places))[open_], tokens[open_])
        settled = torch.where(open_, (settled + counts).clamp(max=TOKENS), settled)
    return ids[:, :TOKENS], passes / COUNT


def test_sequences_have_exactly_the_models_distribution() -> None:
    expected = exact() * COUNT
    # Rare sequences are counted together, as the test wants at least some of each.
    often = expected >= 8
    for places in (2, 3, 5):
        drawn, passes = jacobi(places)
        counts = torch.bincount(index(drawn), minlength=len(expected)).float()
        pairs = [torch.cat((x[often], x[~often].sum().view(1))).double() for x in (counts, expected)]
        assert chisquare(pairs[0], pairs[1] * (pairs[0].sum() / pairs[1].sum())).pvalue > 1e-3, places
        assert passes < TOKENS - 1, "some drafts are accepted"


def test_the_test_notices_drafts_that_are_accepted_too_easily() -> None:
    expected = exact() * COUNT
    first = probabilities(torch.zeros(COUNT, 0, dtype=torch.long))
    drafts = first_drafts(first, torch.rand(COUNT, TOKENS, generator=torch.Generator().manual_seed(0)))
    counts = torch.bincount(index(drafts.ids), minlength=len(expected)).double()
    often = expected >= 8
    pairs = [torch.cat((x[often], x[~often].sum().view(1))).double() for x in (counts, expected)]
    assert chisquare(pairs[0], pairs[1] * (pairs[0].sum() / pairs[1].sum())).pvalue < 1e-6


def test_a_draft_that_the_model_agrees_with_is_always_taken() -> None:
    predicted = torch.rand(50, 1, 9).softmax(dim=-1).expand(-1, 4, -1)
    drafts = first_drafts(predicted[:, 0], torch.rand(50, 3))
    tokens, counts, new = settle(drafts, predicted, torch.rand(50, 8))
    assert counts.tolist() == [4] * 50
    assert torch.equal(tokens[:, :3], drafts.ids) and new.ids.shape == (50, 3)


def test_a_draft_that_cannot_be_is_replaced_by_what_can() -> None:
    drafts = first_drafts(torch.eye(5)[[2]], torch.rand(1, 3))
    predicted = torch.eye(5)[[2, 4, 1, 1]].unsqueeze(0)
    tokens, counts, new = settle(drafts, predicted, torch.rand(1, 8))
    assert counts.tolist() == [2] and tokens[0, :2].tolist() == [2, 4]
    # The drafts for the places behind come from the predictions of this pass.
    assert new.ids.tolist() == [[1, 1, 1]]
