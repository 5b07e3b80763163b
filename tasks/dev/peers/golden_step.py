"""The step of ../golden_step.ts in f64, image by image; prints the largest differences and fails beyond a tolerance.

Arguments: the folder with inputs.npz and <profile>.npz, the tolerance, the profiles. Layouts are tok's: channels last.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


class Decoder:
    """VA-VAE's decoder by the names of tok's fields (src/models/decoder.ts)."""

    def __init__(self, weights):
        self.p = weights

    def conv(self, name, x, padding):
        return F.conv2d(x, self.p[f"{name}.weight"].permute(0, 3, 1, 2), self.p[f"{name}.bias"], padding=padding)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.p[f"{name}.weight"], self.p[f"{name}.bias"], 1e-6)

    def block(self, name, x):
        y = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), 1)
        y = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", y)), 1)
        return (self.conv(f"{name}.nin_shortcut", x, 0) if f"{name}.nin_shortcut.weight" in self.p else x) + y

    def attention(self, name, x):
        B, C, H, W = x.shape
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h, 0).reshape(B, C, H * W) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k * C**-0.5, -1)  # [B, T, S]
        y = v @ weights.transpose(1, 2)
        return x + self.conv(f"{name}.proj_out", y.reshape(B, C, H, W), 0)

    def forward(self, z):
        part = lambda fn, name, x: checkpoint(fn, name, x)
        x = self.conv("conv_in", z, 1)
        x = part(self.block, "mid.block_1", x)
        x = part(self.attention, "mid.attn_1", x)
        x = part(self.block, "mid.block_2", x)
        for level in range(4, -1, -1):
            for i in range(3):
                x = part(self.block, f"up.{level}.block.{i}", x)
                if f"up.{level}.attn.{i}.q.weight" in self.p:
                    x = part(self.attention, f"up.{level}.attn.{i}", x)
            if level:
                x = part(lambda name, x: self.conv(name, F.interpolate(x, scale_factor=2.0), 1), f"up.{level}.upsample.conv", x)
        return self.conv("conv_out", F.silu(self.norm("norm_out", x)), 1)


def main():
    folder, tolerance, *profiles = sys.argv[1:]
    arrays = {k: torch.from_numpy(v.astype(np.float64)) for k, v in np.load(f"{folder}/inputs.npz").items()}
    z, x = (arrays.pop(name).permute(0, 3, 1, 2) for name in "zx")
    weights = {k: v.requires_grad_() for k, v in arrays.items()}
    loss = 0.0
    for i in range(len(z)):
        # checkpoint() needs an input with a gradient
        part = ((Decoder(weights).forward(z[i : i + 1].clone().requires_grad_()) - x[i : i + 1]) ** 2).sum() / x.numel()
        part.backward()
        loss += part.item()
    gradients = {k: v.grad.numpy() for k, v in weights.items()}
    norm2 = sum(float((g**2).sum()) for g in gradients.values())
    failed = False
    for profile in profiles:
        got = np.load(f"{folder}/{profile}.npz")
        # A bias of keys shifts all scores of a query alike, which softmax ignores: its gradient is zero but for rounding.
        scale = lambda k: np.abs(gradients[k.replace(".k.bias", ".q.bias")]).max()
        errors = {k: float(np.abs(got[k] - g).max() / scale(k)) for k, g in gradients.items()}
        errors["loss"] = abs(float(got["loss"][0]) - loss) / loss
        errors["squared gradient norm"] = abs(float(got["norm2"][0]) - norm2) / norm2
        failed |= not max(errors.values()) <= float(tolerance)  # NaN counts as failed
        print(f"{profile}: loss {errors['loss']:.1e}, squared gradient norm {errors['squared gradient norm']:.1e},", end=" ")
        print(f"gradients: median {np.median([errors[k] for k in gradients]):.1e}; largest:")
        for name in sorted(errors, key=lambda k: -errors[k])[:5]:
            print(f"  {errors[name]:.1e}  {name}")
    sys.exit(failed)


main()
