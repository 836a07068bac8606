"""Speculative Jacobi decoding (arXiv 2410.01699): several tokens are tried at once, and the distribution stays exact.

Every pass predicts a whole window of tokens from drafts of the ones before. A draft x that was drawn from q is accepted
with probability min(1, p(x) / q(x)), where p is the prediction now that all tokens before it are settled; at the first
that is not, a token is drawn from what p has more than q, and the drafts behind it are drawn anew from the predictions
of this pass. That is the rule of speculative sampling (arXiv 2211.17192), whose result has exactly the distribution p.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mentor.decoding.filters import invert


@dataclass
class Drafts:
    """Guesses for the tokens behind the last settled one.

    Attributes:
        ids: the guessed tokens.
        probabilities: what each was drawn from.
    """

    ids: Int[Tensor, "b w"]
    probabilities: Float[Tensor, "b w v"]


def first_drafts(probabilities: Float[Tensor, "b v"], uniform: Float[Tensor, "b w"]) -> Drafts:
    """Guesses for as many tokens as `uniform` has numbers, all drawn from the prediction of the last settled token."""
    repeated = probabilities.unsqueeze(1).expand(-1, uniform.shape[1], -1)
    return Drafts(invert(repeated.flatten(0, 1), uniform.flatten()).view_as(uniform).long(), repeated)


def settle(
    drafts: Drafts,
    predicted: Float[Tensor, "b n v"],
    uniform: Float[Tensor, "b m"],
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b"], Drafts]:
    """The tokens that can be settled after one pass, how many of them each row has, and drafts for the next pass.

    Args:
        drafts: the w = n - 1 tokens that the pass went over behind the last settled one.
        predicted: probabilities of the first draft's place, and of the places behind each draft.
        uniform: 2 n numbers in [0, 1) a row: n - 1 for acceptance, one for the token at the first refusal, n for
            drafts (one is not used).

    Returns:
        Tokens, of which the first `count` of a row hold; `count`, from 1 to n; and w new drafts a row.
    """
    rows, places, codes = predicted.shape
    window = places - 1
    index = drafts.ids.unsqueeze(-1)
    now = predicted[:, :window].gather(-1, index).squeeze(-1)
    then = drafts.probabilities.gather(-1, index).squeeze(-1)
    accepted = (uniform[:, :window] * then < now).long().cumprod(dim=-1)
    count = accepted.sum(dim=-1)
    # At the first refusal what p has more than q; after the last draft p itself.
    at = count.view(-1, 1, 1).expand(-1, 1, codes)
    prediction = predicted.gather(1, at).squeeze(1)
    padded = torch.cat((drafts.probabilities, torch.zeros_like(predicted[:, :1])), dim=1)
    rest = (prediction - padded.gather(1, at).squeeze(1)).clamp(min=0)
    # Rounding may leave nothing where p and q are the same; then p is as good.
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, prediction)
    last = invert(rest, uniform[:, window]).long()
    tokens = torch.cat((drafts.ids, drafts.ids.new_zeros(rows, 1)), dim=1).scatter(
        1, count.unsqueeze(-1), last.unsqueeze(-1)
    )
    # Place j behind the new last token was predicted at count + 1 + j; past the window, as the last one.
    ahead = (count.unsqueeze(-1) + 1 + torch.arange(window, device=count.device)).clamp(max=window)
    source = predicted.gather(1, ahead.unsqueeze(-1).expand(-1, -1, codes))
    new = invert(source.flatten(0, 1), uniform[:, places : places + window].flatten()).view(rows, window).long()
    return tokens, count + 1, Drafts(new, source)
