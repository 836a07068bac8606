"""How tokens are drawn."""

from typing import Self

from pydantic import Field, model_validator

from mentor.config import Config
from mentor.diffusion import SAMPLERS


class SamplingConfig(Config):
    """How tokens are drawn.

    Attributes:
        guidance: how far to go from the unconditional towards the conditional prediction; 1 is no guidance.
        guidance_images: scale of its own for the reference images (then `guidance` is the text's); None: one for both.
        guidance_interval: share of a picture's tokens between which there is guidance, or of the way from noise to
            picture (arXiv 2404.07724); outside of it the model is followed as it is, which also takes half of the time.
        temperature: spread of the draw; 0 takes the likeliest token. Of continuous tokens it scales the noise that is
            added in every step (arXiv 2406.11838, section 3.2).
        top_k: draw from the k likeliest tokens only; 0 is all.
        top_p: draw from the likeliest tokens that together hold this share of the probability; 1 is all.
        speculative: tokens that are tried at once (speculative Jacobi decoding, arXiv 2410.01699); 0 or 1 is one after
            the other. The distribution of pictures stays the same, though not the picture of a seed.
        sampler: of what is denoised: euler, heun, dpm++, ddim or ddpm, as far as they fit the noise that the model was
            trained with; None is the model's own.
        steps: of denoising, of a picture or of each token; None is the model's own.
        tokens_per_step: of masked generation: tokens that are drawn at a time, on average; None is the model's own.
    """

    guidance: float = 2.0
    guidance_images: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    speculative: int = Field(default=0)
    sampler: str | None = None
    steps: int | None = None
    tokens_per_step: int | None = None

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.guidance < 0 or (self.guidance_images is not None and self.guidance_images < 0):
            raise ValueError("guidance must be 0 or more (1 is no guidance, 2 to 4 is usual)")
        if not 0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1:
            raise ValueError(f"guidance_interval {self.guidance_interval} must be two rising shares between 0 and 1")
        if self.temperature < 0:
            raise ValueError(
                f"temperature {self.temperature} must be 0 (greedy) or more (1 draws as the model predicts)"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1 (all tokens)")
        if not 0 <= self.speculative <= 64:
            raise ValueError(f"speculative {self.speculative} must be 0 (off) to 64 tokens at once (8 to 16 is usual)")
        for name in ("steps", "tokens_per_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler!r} is unknown: choose {', '.join(SAMPLERS)}")
        return self

    @property
    def parts(self) -> int:
        """Rows that a picture takes: the full prompt, then with guidance the null condition, then the images alone."""
        images = self.guidance if self.guidance_images is None else self.guidance_images
        if self.guidance == images:
            return 1 if self.guidance == 1 else 2
        return 3
