"""Sampling: samplers, classifier-free guidance, and the diffusers pipeline of exported models.

Every exported model contains a copy of this file, so it imports nothing else of this project. Annotations are not
postponed: diffusers 0.35 reads the types of `__init__` and does not understand them as strings.

DDPM: Ho et al. 2020; DDIM: Song et al. 2021; DPM-Solver++: Lu et al. 2022; classifier-free guidance: Ho & Salimans
2022; guidance interval: Kynkäänniemi et al. 2024; autoguidance: Karras et al. 2024. The samplers are of diffusers.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Optional, Union

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

EMNIST_BALANCED = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler}
EVERYWHERE = [0.0, 1.0]  # all noise levels; a list, as diffusers 0.35 does not understand the type of a tuple


def make_sampler(name: str, scheduler: DDPMScheduler, steps: int) -> tuple[DDPMScheduler, torch.Tensor]:
    """A sampler with `steps` steps that takes clean images as the model's output, and its timesteps: int64 [steps],
    descending.

    The schedule is respaced as in Nichol & Dhariwal 2021: the sampler knows only the noise levels of `steps` evenly
    spaced timesteps. The spacing of diffusers is inexact where `steps` does not divide the training timesteps.

    Args:
        scheduler: the noise schedule of the training.

    Raises:
        ValueError: unknown sampler, or a number of steps outside 1 to the number of training timesteps.
    """
    trained = scheduler.config.num_train_timesteps
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; there are {', '.join(SAMPLERS)}")
    if not 1 <= steps <= trained:
        raise ValueError(f"{steps} steps: this model takes 1 to {trained}")
    timesteps = (torch.arange(1, steps + 1) * trained + steps // 2) // steps - 1  # evenly spaced, the noisiest included
    kept = scheduler.alphas_cumprod.cpu()[timesteps]  # the samplers keep their tables on the CPU
    betas = 1 - kept.double() / torch.cat([kept.new_ones(1), kept[:-1]])
    sampler = SAMPLERS[name].from_config(
        scheduler.config, num_train_timesteps=steps, trained_betas=betas.tolist(), timestep_spacing="trailing",
        prediction_type="sample", clip_sample=False,
    )  # fmt: skip
    sampler.alphas_cumprod = kept  # exact: the last beta rounds to 1, so the last of its own would be 0, and divides
    sampler.set_timesteps(steps)
    return sampler, timesteps.flip(0)


def patch_size(unet: UNet2DModel) -> int:
    """The side of the squares of pixels that a network takes as the channels of one (pixel_unshuffle)."""
    return math.isqrt(unet.config.in_channels)


def resolution(unet: UNet2DModel) -> int:
    """Height and width of the images that a network draws."""
    return unet.config.sample_size * patch_size(unet)


def guided_steps(steps: int, interval: Sequence[float]) -> list[bool]:
    """Which of `steps` denoising steps are guided, the noisiest first: those whose noise level is in (low, high].

    The level is the part of the trained timesteps that lies below: 1, (steps - 1) / steps, …, 1 / steps.

    Raises:
        ValueError: not 0 <= low < high <= 1.
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance interval {low:g} to {high:g}: give two levels from 0 to 1, the lower one first")
    return [low < left / steps <= high for left in range(steps, 0, -1)]


@torch.no_grad()
def denoise(
    model: torch.nn.Module,
    scheduler: DDPMScheduler,
    labels: torch.Tensor,
    noise: torch.Tensor,
    *,
    steps: int,
    guidance_scale: float,
    guidance_interval: Sequence[float] = EVERYWHERE,
    guide: torch.nn.Module | None = None,
    sampler: str = "ddim",
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the images after each denoising step: float32 [N, 1, R, R], the last ones in [-1, 1].

    The prediction is weak + guidance_scale * (cond - weak). Classifier-free guidance: weak is the same model without a
    label, in the same batch, and a scale of 0 ignores the labels. Autoguidance: weak is the prediction of `guide`. A
    scale of 1 is plain conditional sampling. The predicted clean image is clipped to [-1, 1] and the sampler continues
    from the clipped one (static thresholding, Saharia et al. 2022); with the noise of the unclipped image the error
    would add up over the steps. All images take a step before any takes the next, so the result does not depend on
    `batch_size`.

    Args:
        labels: int64 [N]; the null class means "any class".
        noise: float32 [N, 1, R, R], standard normal.
        guidance_interval: the noise levels with guidance, see `guided_steps`; the others are sampled with scale 1.
        guide: a weaker model of the same noise schedule and prediction type, such as an earlier state of `model`.
        generator: of the noise that `ddpm` adds in every step.
        batch_size: images drawn at once; all if None.

    Raises:
        ValueError: as `make_sampler` and `guided_steps`.
    """
    stepper, timesteps = make_sampler(sampler, scheduler, steps)
    scales = [guidance_scale if guided else 1 for guided in guided_steps(steps, guidance_interval)]
    images, batch_size = noise, batch_size or len(noise)
    numbered = enumerate(zip(stepper.timesteps, timesteps.to(noise.device), scales, strict=True), 1)
    for number, (index, timestep, scale) in numbered:
        parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        predictions = torch.cat([_guided(model, guide, part, timestep, wanted, scale) for part, wanted in parts])
        clean = _clean(images, predictions, stepper.alphas_cumprod[index].item(), scheduler.config.prediction_type)
        images = stepper.step(clean.clamp(-1, 1), index, images, generator=generator).prev_sample
        if number == steps:
            images = images.clamp(-1, 1)
        yield images


def _guided(
    model: torch.nn.Module,
    guide: torch.nn.Module | None,
    images: torch.Tensor,
    timestep: torch.Tensor,
    labels: torch.Tensor,
    guidance_scale: float,
) -> torch.Tensor:
    """The prediction for a batch, float32, with guidance by `guide`, or classifier-free if it is None."""

    def predict(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        side = patch_size(network)
        patches = F.pixel_unshuffle(images.to(network.dtype), side)
        return F.pixel_shuffle(network(patches, timestep, class_labels=labels, return_dict=False)[0].float(), side)

    if guidance_scale == 1:
        return predict(model, images, labels)
    if guide is None:
        none = torch.full_like(labels, model.config.num_class_embeds - 1)
        if guidance_scale == 0:
            return predict(model, images, none)
        conditional, weak = predict(model, torch.cat([images, images]), torch.cat([labels, none])).chunk(2)
    else:
        weak = predict(guide, images, labels)
        if guidance_scale == 0:
            return weak
        conditional = predict(model, images, labels)
    return weak + guidance_scale * (conditional - weak)


def _clean(noisy: torch.Tensor, predictions: torch.Tensor, signal: float, prediction_type: str) -> torch.Tensor:
    """The clean images that follow from predicted noise or velocity (Salimans & Ho 2022).

    Args:
        signal: the clean image's share of the variance (alphas_cumprod).
    """
    if prediction_type == "epsilon":
        return (noisy - (1 - signal) ** 0.5 * predictions) / signal**0.5
    return signal**0.5 * noisy - (1 - signal) ** 0.5 * predictions


def sample(*arguments, **options) -> torch.Tensor:
    """The images after the last step of `denoise`, which takes the same arguments."""
    return deque(denoise(*arguments, **options), maxlen=1).pop()


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images [N, 1, R, R] in [-1, 1] as pixels, uint8 [N, R, R]: 0 is background."""
    return ((images[:, 0].float().clamp(-1, 1) + 1) * 127.5).round().byte()


def listed(names: Sequence[str], most: int = 300) -> str:
    """The names of classes, at most about `most` letters of them: `0123ABC`, or `Bag, "Ankle boot" and 8 more`.

    Where they are not characters, those with blanks, commas or quotation marks are in double quotes, as in CSV.
    """
    between, count = "", len(names)
    if any(len(name) > 1 for name in names):
        between = ", "
        names = [name if {*name}.isdisjoint(' ,"') else '"' + name.replace('"', '""') + '"' for name in names]
    while count > 1 and len(between.join(names[:count])) > most:
        count -= 1
    return between.join(names[:count]) + (f" and {len(names) - count:,} more" if count < len(names) else "")


class CharacterPipeline(DiffusionPipeline):
    """Draws images of given classes.

    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipeline("Hello").images[0].show()  # where the classes are characters; any others: pipeline(["Bag", "Coat"])
    """

    _optional_components = ["guide"]  # noqa: RUF012  as diffusers reads it

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        # diffusers takes an argument without a default for a part of the model
        class_names: Union[str, list[str]] = EMNIST_BALANCED,  # noqa: UP007  as for `guide`
        sampler: str = "ddim",
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        guidance_interval: list[float] = EVERYWHERE,
        guide: Optional[UNet2DModel] = None,  # noqa: UP045  diffusers 0.35 does not understand UNet2DModel | None
    ) -> None:
        """
        Args:
            class_names: the character or the name of each class, in the order of the labels.
            sampler, num_inference_steps, guidance_scale, guidance_interval: the defaults of a call.
            guide: a weaker model for autoguidance; without one, guidance is classifier-free.
        """
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, guide=guide)
        self.register_to_config(
            class_names=class_names,
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=list(guidance_interval),
        )

    def label_of(self, name: str) -> int:
        """The label of a character, or of a class by its name. Where both cases of a letter share a class, either
        gives its label.

        Raises:
            ValueError: the model does not have this class.
        """
        names = list(self.config.class_names)
        for known in (name, name.upper()):
            if known in names:
                return names.index(known)
        what, cases = ("characters", " (either case)") if self.draws_text else ("classes", "")
        raise ValueError(f"{name!r} is not among the {what} of this model: {listed(names)}{cases}")

    @property
    def draws_text(self) -> bool:
        """Is every class a character?"""
        return isinstance(self.config.class_names, str)

    def __call__(
        self,
        characters: str | Sequence[str | int],
        *,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        use_guide: bool = True,
        generator: torch.Generator | None = None,
        batch_size: int = 256,
        output_type: str = "pil",
        on_step: Callable[[int, torch.Tensor], None] | None = None,
    ) -> ImagePipelineOutput:
        """Draw one image for each of `characters`.

        Args:
            characters: a text, blanks ignored, if every class is a character; else a list of names of classes, or of
                labels: the one after the last class means "any".
            sampler: one of SAMPLERS.
            guidance_interval: the noise levels with guidance, from 0 (clean) to 1 (noise), such as (0.3, 0.8).
            use_guide: autoguidance, if the model has a guide; False is classifier-free guidance.
            generator: source of all randomness; one on the CPU gives the same images on every device.
            batch_size: images drawn at once; the result does not depend on it.
            output_type: "pil", "np" for uint8 [N, R, R], or "pt" for float32 [N, 1, R, R] in [-1, 1].
            on_step: called with 0 and the noise, then after each step with its number and the images as for "pt".

        Raises:
            ValueError: unknown class, label or sampler, a wrong interval, or a number of steps that the model does
                not have.
        """
        chosen = {
            "sampler": self.config.sampler if sampler is None else sampler,
            "steps": self.config.num_inference_steps if num_inference_steps is None else num_inference_steps,
            "guidance_scale": self.config.guidance_scale if guidance_scale is None else guidance_scale,
            "guidance_interval": self.config.guidance_interval if guidance_interval is None else guidance_interval,
            "guide": self.guide if use_guide else None,
        }
        labels, size = self._labels(characters), resolution(self.unet)
        noise = randn_tensor((len(labels), 1, size, size), generator, self._execution_device, torch.float32)
        steps = denoise(self.unet, self.scheduler, labels, noise, **chosen, generator=generator, batch_size=batch_size)
        on_step = on_step or (lambda number, images: None)
        on_step(0, noise)
        with self.progress_bar(total=chosen["steps"]) as bar:
            for number, images in enumerate(steps, 1):
                bar.update()
                on_step(number, images)
        return ImagePipelineOutput(images=_converted(images, output_type))

    def _labels(self, characters: str | Sequence[str | int]) -> torch.Tensor:
        if isinstance(characters, str):
            if not self.draws_text:
                names = listed(self.config.class_names)
                raise ValueError(f"this model cannot draw a text: give a list of its classes, which are {names}")
            characters = [character for character in characters if not character.isspace()]
        if not isinstance(characters, torch.Tensor):
            characters = [self.label_of(each) if isinstance(each, str) else each for each in characters]
        labels, none = torch.as_tensor(characters, dtype=torch.long), len(self.config.class_names)
        if not len(labels):
            raise ValueError("nothing to draw: give a text, or a list of classes")
        if labels.min() < 0 or labels.max() > none:
            raise ValueError(f"labels are 0 to {none}, where {none} means any class")
        return labels.to(self._execution_device)


def _converted(images: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
    if output_type == "pt":
        return images
    pixels = to_bytes(images).cpu().numpy()
    return pixels if output_type == "np" else [Image.fromarray(each) for each in pixels]
