"""What decoding is compared with: transformers' `generate`, a loop by hand, bare products, and having no cache."""

import time
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from benchmarks.models import GUIDANCE, VOCABULARY, text_condition, with_null
from mentor.models import BackboneConfig, CodeGenerator
from mentor.models.generator import prefix_lm_mask
from mentor.nn.layers import swiglu_hidden
from mentor.sampling import SamplingConfig, sample


class Llama:
    """transformers' Llama with the shapes of a backbone and random weights.

    Args:
        backbone: the shapes.
        prefix: tokens of a prompt.
        dtype: of weights and cache.
        vocabulary: how many codes there are.
    """

    def __init__(self, backbone: BackboneConfig, prefix: int, dtype: torch.dtype, vocabulary: int = VOCABULARY) -> None:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=backbone.width,
            intermediate_size=swiglu_hidden(backbone.width),
            num_hidden_layers=backbone.layers,
            num_attention_heads=backbone.heads,
            num_key_value_heads=backbone.kv_heads or backbone.heads,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            # With no token that ends a sequence, all are of full length.
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        self.prefix = prefix
        self.vocabulary = vocabulary

    def prompts(self, batch: int) -> Int[Tensor, "b p"]:
        """Prompts of random tokens."""
        return torch.randint(1, self.vocabulary, (batch, self.prefix))

    def generate(self, batch: int, guided: bool, static: bool, tokens: int) -> None:
        """Draw `tokens` tokens for each of `batch` prompts with the library's own loop.

        With guidance that calls the model twice a token. The negative prompts then have a dynamic cache, even if the
        others' is static.
        """
        ids = self.prompts(batch)
        more = {}
        if guided:
            # As long as the prompts, as they are in our rows. Left out, they would be the prompts' last tokens.
            more = {"negative_prompt_ids": self.prompts(batch), "negative_prompt_attention_mask": torch.ones_like(ids)}
        found = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            temperature=1.0,
            guidance_scale=GUIDANCE if guided else None,
            cache_implementation="static" if static else None,
            **more,
        )
        assert found.shape == (batch, self.prefix + tokens)

    @torch.inference_mode()
    def loop(self, batch: int, tokens: int) -> None:
        """Draw `tokens` tokens with guidance as users of such models write it: both prompts as rows of one batch."""
        ids = self.prompts(2 * batch)
        cache = DynamicCache(config=self.model.config)
        for _ in range(tokens):
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            full, null = logits.chunk(2)
            chosen = torch.multinomial((null + GUIDANCE * (full - null)).softmax(dim=-1), 1)
            ids = torch.cat((chosen, chosen))


class Products:
    """The matrix products of decoding steps with weights of their own, and nothing else."""

    def __init__(self, backbone: BackboneConfig, vocabulary: int = VOCABULARY) -> None:
        width, hidden = backbone.width, swiglu_hidden(backbone.width)
        heads = backbone.heads + 2 * (backbone.kv_heads or backbone.heads)
        block = [(heads * width // backbone.heads, width), (width, width), (2 * hidden, width), (width, hidden)]
        shapes = block * backbone.layers + [(vocabulary, width)]
        self.weights = [torch.randn(shape) for shape in shapes]

    @torch.inference_mode()
    def run(self, rows: int, tokens: int) -> None:
        """As many steps as tokens, for `rows` rows."""
        inputs = {width: torch.randn(rows, width) for width in {weight.shape[1] for weight in self.weights}}
        for _ in range(tokens):
            for weight in self.weights:
                F.linear(inputs[weight.shape[1]], weight)


@torch.inference_mode()
def uncached_logits(generator: CodeGenerator, guided: bool, ids: Int[Tensor, "b t"]) -> Float[Tensor, "n v"]:
    """Logits of the token after `ids`, from the whole sequence and without a cache; with guidance, of both rows."""
    condition = text_condition(len(ids))
    prefix = generator.conditioner(with_null(condition) if guided else condition)
    tokens = ids.repeat(2, 1) if guided else ids
    cells = generator.input_cells(tokens)
    embedded = generator.place(generator.embedding(tokens), cells)
    x = torch.cat((generator.place(prefix.embeddings, prefix.cells), embedded), dim=1)
    rotary = generator.turns(torch.cat((prefix.cells, cells), dim=1), prefix.embeddings.shape[1])
    mask = prefix_lm_mask(prefix.mask, tokens.shape[1])
    return generator.head(generator.backbone(x, rotary, mask, tail=1))[:, -1]


def uncached_seconds(generator: CodeGenerator, guided: bool, samples: int = 9) -> float:
    """About how long one picture takes without a cache: some of its tokens are timed, the others interpolated."""
    last = generator.spec.tokens - 1
    places = [last * number // (samples - 1) for number in range(samples)]
    ids = torch.randint(generator.spec.vocab_size, (1, last))
    seconds = []
    with generator.head.fixed():
        for place in places:
            started = time.perf_counter()
            uncached_logits(generator, guided, ids[:, :place])
            seconds.append(time.perf_counter() - started)
    # Straight lines between the places give each of the two outermost tokens half.
    lines = sum((right - left) * (seconds[i] + seconds[i + 1]) / 2 for i, (left, right) in enumerate(pairwise(places)))
    return lines + (seconds[0] + seconds[-1]) / 2


@torch.inference_mode()
def uncached_difference(cached: CodeGenerator, plain: CodeGenerator, guided: bool) -> float:
    """The largest difference of logits over the tokens of a picture; with guidance, of the guided ones.

    Compared are those of `cached` while it draws and those of `plain` for the same tokens at once.
    """
    drawn: list[Tensor] = []

    def keep(logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        drawn.append(logits.clone())
        return logits

    condition = text_condition(1)
    ids = sample(cached, condition, [0], SamplingConfig(guidance=GUIDANCE if guided else 1.0), [keep])
    if guided:
        full, null = plain(with_null(condition), ids.repeat(2, 1, 1)).chunk(2)
        whole = null + GUIDANCE * (full - null)
    else:
        whole = plain(condition, ids)
    return (torch.stack(drawn, dim=1) - whole).abs().max().item()
