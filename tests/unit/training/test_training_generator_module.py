from dataclasses import replace

import pytest
import torch
from tiny import tiny_fused_generator
from torch.nn import functional

from mentor.conditioning import encode_condition
from mentor.errors import UserError
from mentor.models import Generator
from mentor.models.checkpoint import weights_fingerprint
from mentor.tokenizers import ImageTokenizer
from mentor.training.config import GuidanceConfig, ObjectiveConfig
from mentor.training.generator_module import GeneratorModule
from mentor.training.objectives import cell_weights, token_entropy
from mentor.training.optim import OptimizerConfig
from mentor.types import Batch, ImageSegment, TextSegment, prompt_images


def make_module(generator: Generator, image_tokenizer: ImageTokenizer, **objective) -> GeneratorModule:
    return GeneratorModule(
        generator, image_tokenizer, ObjectiveConfig(**objective), OptimizerConfig(lr=1e-3), 10, ["segment"], seed=0
    )


def make_batch(rows: int = 4) -> Batch:
    random = torch.Generator().manual_seed(0)
    targets = torch.rand(rows, 3, 64, 64, generator=random) * 2 - 1
    references = torch.rand(rows, 3, 64, 64, generator=random) * 2 - 1
    focus = torch.zeros(rows, 64, 64)
    focus[:, :32, :32] = 1
    return Batch(
        tasks=["segment"] * rows,
        prompts=[(TextSegment("the circle in "), ImageSegment(image)) for image in references],
        targets=targets,
        focus=focus,
        keys=[f"{row:04d}" for row in range(rows)],
        valid=torch.ones(rows, dtype=torch.bool),
        facts=[{}] * rows,
    )


def test_cells_weigh_by_what_the_object_fills_of_them_with_mean_one() -> None:
    focus = torch.zeros(2, 4, 4)
    focus[0, :2, :2] = 1  # all of cell 0
    focus[0, 0, 2] = 1  # a quarter of cell 1
    weights = cell_weights(focus, (2, 2), 3.0)
    expected = torch.tensor([4.0, 1.75, 1.0, 1.0])
    torch.testing.assert_close(weights[0], expected / expected.mean())
    torch.testing.assert_close(weights[1], torch.ones(4))


def test_cells_are_in_raster_order() -> None:
    focus = torch.zeros(1, 4, 6)
    focus[0, 2:, 4:] = 1  # last row, last column of a grid of 2 x 3
    assert cell_weights(focus, (2, 3), 1.0)[0].argmax() == 5
    focus = torch.zeros(1, 4, 6)
    focus[0, :2, 4:] = 1
    assert cell_weights(focus, (2, 3), 1.0)[0].argmax() == 2


def test_without_focus_weight_all_cells_weigh_the_same() -> None:
    torch.testing.assert_close(cell_weights(torch.rand(2, 8, 8), (4, 4), 0.0), torch.ones(2, 16))


def test_entropy_is_that_of_the_definition() -> None:
    logits, ids = torch.randn(2, 4, 7), torch.randint(7, (2, 2, 2))
    expected = -logits.log_softmax(-1).gather(2, ids.reshape(2, 4, 1)).squeeze(2)
    torch.testing.assert_close(token_entropy(logits, ids), expected)
    assert token_entropy(logits.bfloat16(), ids).dtype == torch.float32


def test_the_loss_is_the_weighted_mean(generator: Generator, image_tokenizer: ImageTokenizer) -> None:
    module = make_module(generator, image_tokenizer, focus_weight=2.0)
    batch = make_batch(2)
    scores = module.example_scores(batch.prompts, batch, 0)
    losses, accuracy = scores["loss"], scores["accuracy"]
    ids = image_tokenizer.encode(batch.targets).ids
    logits = generator(encode_condition(batch.prompts, image_tokenizer.encode), ids)
    for row in range(2):
        entropy = functional.cross_entropy(logits[row], ids[row].flatten(), reduction="none")
        inside = torch.zeros(8, 8)
        inside[:4, :4] = 1
        weights = (1 + 2 * inside).flatten()
        torch.testing.assert_close(losses[row], (entropy * weights).sum() / weights.sum())
        assert accuracy[row] == (logits[row].argmax(-1) == ids[row].flatten()).float().mean()


def test_references_get_their_codes_whether_or_not_they_repeat_the_target(
    generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    module = make_module(generator, image_tokenizer)
    batch = make_batch(4)
    first, second, third, _ = batch.prompts
    same = (ImageSegment(batch.targets[1].clone()), *second)
    prompts = [first, same, (TextSegment("none"),), (*third, ImageSegment(batch.targets[3].clone()))]
    target, condition = module.encode_batch(prompts, batch.targets)
    expected = encode_condition(prompts, image_tokenizer.encode)
    assert torch.equal(target.ids, image_tokenizer.encode(batch.targets).ids)
    assert condition.codes is not None
    assert expected.codes is not None
    assert len(condition.codes.ids) == 5
    assert torch.equal(condition.codes.ids, expected.codes.ids)
    torch.testing.assert_close(condition.codes.latents, expected.codes.latents)
    torch.testing.assert_close(condition.codes.features, expected.codes.features)
    assert module.encode_batch([(), ()], batch.targets[:2])[1].codes is None


def test_the_loss_reaches_the_generator_and_not_the_image_tokenizer(
    generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    module = make_module(generator, image_tokenizer)
    batch = make_batch()
    losses = module.example_scores(batch.prompts, batch, 0)["loss"]
    losses.mean().backward()
    assert all(parameter.grad is None for parameter in image_tokenizer.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in generator.parameters())


def test_the_image_tokenizer_is_not_part_of_the_module(generator: Generator, image_tokenizer: ImageTokenizer) -> None:
    module = make_module(generator, image_tokenizer)
    assert all(name.startswith("generator.") for name in module.state_dict())
    module.train()
    assert not image_tokenizer.training
    assert not any(parameter.requires_grad for parameter in image_tokenizer.parameters())


def test_dropping_depends_on_seed_step_and_key_alone(generator: Generator, image_tokenizer: ImageTokenizer) -> None:
    shares = GuidanceConfig(everything=0.3, text=0.2, images=0.2)
    module = make_module(generator, image_tokenizer, guidance=shares)
    batch = make_batch(64)
    together = module.drop(batch, 5)
    half = replace(batch, keys=batch.keys[32:], prompts=batch.prompts[32:])
    assert all(a is b or a == b for a, b in zip(together[32:], module.drop(half, 5), strict=True))
    lengths = [len(prompt) for prompt in together]
    assert 5 < lengths.count(0) < 35
    assert any(len(prompt) == 1 and prompt_images(prompt) for prompt in together)
    assert any(len(prompt) == 1 and not prompt_images(prompt) for prompt in together)
    assert lengths != [len(prompt) for prompt in module.drop(batch, 6)]


def test_the_null_condition_is_trained(generator: Generator, image_tokenizer: ImageTokenizer) -> None:
    module = make_module(generator, image_tokenizer, guidance=GuidanceConfig(everything=1.0, text=0.0))
    batch = make_batch(2)
    losses = module.example_scores(module.drop(batch, 0), batch, 0)["loss"]
    losses.mean().backward()
    gradient = generator.conditioner.special.grad
    assert gradient is not None
    assert gradient[0].abs().sum() > 0


def test_label_smoothing_is_for_training_only(generator: Generator, image_tokenizer: ImageTokenizer) -> None:
    batch = make_batch(2)
    smooth = make_module(generator, image_tokenizer, label_smoothing=0.2)
    plain = make_module(generator, image_tokenizer)
    for module in (smooth, plain):
        module.eval()
    torch.testing.assert_close(
        smooth.example_scores(batch.prompts, batch, 0)["loss"], plain.example_scores(batch.prompts, batch, 0)["loss"]
    )
    smooth.train()
    assert not torch.allclose(
        smooth.example_scores(batch.prompts, batch, 0)["loss"], plain.example_scores(batch.prompts, batch, 0)["loss"]
    )


def test_validation_works_in_eval_mode_and_skips_padding(generator: Generator, image_tokenizer: ImageTokenizer) -> None:
    module = make_module(generator, image_tokenizer).eval()
    batch = make_batch(4)
    valid = torch.tensor([True, True, False, False])
    with torch.no_grad():
        losses = module.example_scores(batch.prompts, batch, 0)["loss"]
        module.validation_step(replace(batch, valid=valid), 0)
    means = module._validation_means.take()
    assert means["loss/segment"] == pytest.approx(float(losses[:2].mean()), rel=1e-5)
    assert means["loss"] == means["loss/segment"]


def test_illustrations_have_four_pictures_in_range(generator: Generator, image_tokenizer: ImageTokenizer) -> None:
    module = make_module(generator, image_tokenizer).eval()
    rows = module.illustrate(make_batch(2))
    assert [caption for caption, _ in rows] == ["the circle in <image>"] * 2
    for _, pictures in rows:
        assert len(pictures) == 4
        assert all(picture.shape == (3, 64, 64) and picture.abs().max() <= 1 for picture in pictures)


def test_a_checkpoint_of_another_image_tokenizer_is_refused(
    generator: Generator, image_tokenizer: ImageTokenizer
) -> None:
    module = make_module(generator, image_tokenizer)
    checkpoint: dict[str, object] = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    assert checkpoint["image_tokenizer_fingerprint"] == weights_fingerprint(image_tokenizer)
    checkpoint["image_tokenizer_fingerprint"] = "0" * 16
    with pytest.raises(UserError, match="tokenizer 0000000000000000, and now"):
        module.on_load_checkpoint(checkpoint)


def test_references_that_are_read_as_pixels_are_not_encoded(image_tokenizer: ImageTokenizer) -> None:
    module = make_module(tiny_fused_generator(image_tokenizer), image_tokenizer)
    batch = make_batch(2)
    encoded: list[int] = []
    whole = image_tokenizer.encode
    module.encode = lambda images: encoded.append(len(images)) or whole(images)
    target, condition = module.encode_batch(batch.prompts, batch.targets)
    assert encoded == [2] and condition.codes is None and torch.equal(target.ids, whole(batch.targets).ids)
    losses = module.example_scores(batch.prompts, batch, 0)["loss"]
    losses.mean().backward()
    conditioner = module.generator.conditioner
    for name, parameter in conditioner.named_parameters():
        frozen = name.startswith(conditioner.apart)
        # Nothing was left out of these prompts.
        assert (parameter.grad is None) == (frozen or name == "nothing"), name
    assert len(module.illustrate(batch)) == 2
