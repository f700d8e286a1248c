"""The average of diffusers in a loop like those of its training scripts.

`ema.step` reads the parameters after a step, and `store`, `copy_to` and `restore` write them in a
way that leaves no trace. So the first is decorated and the others stand inside
`opt.true_weights()`.
"""

import tempfile

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from diffusers.utils import logging

import wpadamw

logging.disable_progress_bar()
torch.manual_seed(0)
model = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(16,),
    norm_num_groups=4,
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    add_attention=False,
)
noise_scheduler = DDPMScheduler(num_train_timesteps=20)

opt = wpadamw.WPAdamW(model.parameters(), lr=3e-3)
wpadamw.attach(model, opt)
ema = EMAModel(model.parameters(), model_cls=UNet2DModel, model_config=model.config)
ema.step = opt.true_weights()(ema.step)  # the average is one of true weights

for _ in range(40):
    clean = torch.ones(8, 1, 8, 8) * torch.randn(8, 1, 1, 1).sign()
    noise, times = torch.randn_like(clean), torch.randint(0, 20, (8,))
    output = model(noise_scheduler.add_noise(clean, noise, times), times).sample
    loss = torch.nn.functional.mse_loss(output, noise)
    loss.backward()
    opt.step()
    opt.zero_grad()
    ema.step(model.parameters())

with tempfile.TemporaryDirectory() as folder:
    with opt.true_weights():  # sampling and saving with the average, then the training goes on
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        pipeline = DDPMPipeline(model, noise_scheduler)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(4, num_inference_steps=20, output_type="np").images
        pipeline.save_pretrained(folder)
        ema.restore(model.parameters())
    saved = DDPMPipeline.from_pretrained(folder).unet

pairs = zip(saved.parameters(), ema.shadow_params, strict=True)
print(f"loss {loss:.3f}, {len(images)} images, weights are {opt.weights_are} again")
print("the average was saved:", all(torch.equal(p, q) for p, q in pairs))
