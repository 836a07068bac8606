"""The Q-Former with copied weights against those of transformers: InstructBLIP's with text, BLIP-2's without."""

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, InstructBlipQFormerConfig, InstructBlipQFormerModel

from mentor.conditioning.qformer import Attention, FeedForward, QFormer, QFormerConfig

WIDTH, PATCHES, WORDS, QUERIES, LAYERS = 24, 20, 30, 5, 5
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "intermediate_size": 4 * WIDTH,
    "encoder_hidden_size": PATCHES,
    "cross_attention_frequency": 2,
}


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    ours.load_state_dict(theirs.state_dict())


def copy_attention(ours: Attention, theirs: nn.Module) -> None:
    for name in ("query", "key", "value"):
        copy(getattr(ours, name), getattr(theirs.attention, name))
    copy(ours.out, theirs.output.dense)
    copy(ours.norm, theirs.output.LayerNorm)


def copy_feed_forward(ours: FeedForward, widen: nn.Module, narrow: nn.Module) -> None:
    copy(ours.widen, widen.dense)
    copy(ours.narrow, narrow.dense)
    copy(ours.norm, narrow.LayerNorm)


def louden(model: nn.Module) -> None:
    """Give the model weights that make a difference, norms and biases included."""
    for parameter in model.eval().parameters():
        nn.init.normal_(parameter, std=0.3)


def ours_like(theirs: InstructBlipQFormerModel | Blip2QFormerModel) -> QFormer:
    """Ours with the layers of theirs; text comes as their vectors of words."""
    config = QFormerConfig(tokens=QUERIES, layers=LAYERS, heads=3, width=WIDTH)
    ours = QFormer(config, PATCHES, WIDTH, longest=WORDS)
    louden(ours)
    ours.project_text.weight.data = torch.eye(WIDTH)
    nn.init.zeros_(ours.project_text.bias)
    for number, (own, other) in enumerate(zip(ours.layers, theirs.encoder.layer, strict=True)):
        copy_attention(own.attention, other.attention)
        copy_feed_forward(own.feed_queries, other.intermediate_query, other.output_query)
        assert (own.cross is None) == (not other.has_cross_attention)
        if own.cross is not None:
            copy_attention(own.cross, other.crossattention)
        # What the last layer makes of text goes nowhere.
        assert (own.feed_text is None) == (number == LAYERS - 1)
        if own.feed_text is not None:
            copy_feed_forward(own.feed_text, other.intermediate, other.output)
    return ours


@torch.no_grad()
def test_with_text_it_is_instruct_blips() -> None:
    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": 40, "max_position_embeddings": WORDS}
    theirs = InstructBlipQFormerModel(InstructBlipQFormerConfig(**shape))
    louden(theirs)
    ours = ours_like(theirs)
    copy(ours.norm, theirs.embeddings.layernorm)
    copy(ours.positions, theirs.embeddings.position_embeddings)
    ids = torch.randint(1, 40, (3, 7))
    lengths = [7, 2, 4]
    mask = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    patches = torch.randn(3, 6, PATCHES)
    expected = theirs(
        input_ids=ids,
        attention_mask=torch.cat((torch.ones(3, QUERIES), mask), dim=1).long(),
        query_embeds=ours.queries.expand(3, -1, -1),
        encoder_hidden_states=patches,
    ).last_hidden_state[:, :QUERIES]
    words = [theirs.embeddings.word_embeddings(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    found = ours.read(patches, words)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5
    assert (ours.read(patches, [word[:1] for word in words]) - expected).abs().max() > 1e-2, "text makes a difference"


@torch.no_grad()
def test_without_text_it_is_blip_2s() -> None:
    torch.manual_seed(1)
    theirs = Blip2QFormerModel(Blip2QFormerConfig(**SHAPE, use_qformer_text_input=True))
    louden(theirs)
    ours = ours_like(theirs)
    copy(ours.norm, theirs.layernorm)
    patches = torch.randn(2, 6, PATCHES)
    expected = theirs(query_embeds=ours.queries.expand(2, -1, -1), encoder_hidden_states=patches).last_hidden_state
    found = ours.read(patches, [torch.zeros(0, WIDTH)] * 2)
    assert (found - expected).abs().max() < 1e-5
