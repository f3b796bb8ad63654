"""What `--preset` and `--recipe` set: the flags of `TrainConfig`, where they differ from its defaults."""

from __future__ import annotations

from typing import Any, Literal

PresetName = Literal["tiny", "small", "medium", "large", "xl"]
RecipeName = Literal["reference", "fast"]

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        recipe="fast", resolution=28, patch_size=2, batch_size=32, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, mid_attention=False, epochs=6, sample_steps=20, val_images=500, sample_every=3,
        samples_per_class=8,
    ),
    "small": dict(resolution=28, batch_size=2048, block_out_channels=(64, 128, 256)),
    "medium": dict(resolution=64, batch_size=384, block_out_channels=(64, 128, 256, 256)),
    "large": dict(resolution=96, batch_size=96, block_out_channels=(96, 192, 384, 384)),
    "xl": dict(resolution=128, batch_size=32, block_out_channels=(128, 256, 512, 512)),
}  # fmt: skip


RECIPES: dict[str, dict[str, Any]] = {
    "reference": {},
    "fast": dict(
        optimizer="muon", lr=1e-3, lr_schedule="cosine", warmup_steps=100, weight_decay=0.1, ema_decay=0.995,
        prediction_type="v_prediction", timestep_sampling="stratified", timestep_power=0.45,
        resnet_time_scale_shift="scale_shift",
    ),
}  # fmt: skip
EXCEPTIONS: dict[tuple[str, str], dict[str, Any]] = {  # what a preset changes of a recipe
    ("tiny", "fast"): dict(lr=3e-3),  # small diverged at that, without the decay
}
