// How exact every model is: the largest error of its output and of its gradients against the official implementation (dit_*: an
// independent one in PyTorch, fixtures/make_dit_variants.py; *_pooled: fixtures/make_pooling_heads.py; both equal the official
// ones by fixtures/compare_official.py),
// relative to the largest element of a tensor, worst of both kernel profiles, on small models with random weights (LPIPS and
// Inception at full size), measured on Mesa's llvmpipe. Tests allow three times as much.
// `deno run tests/helpers/claims.ts` prints the table as README.md has it.

import { assert } from "@std/assert";

interface Claim {
  /** What the table calls it; models of one name are one row, with the larger errors. */
  model: string;
  output: number;
  gradients?: number;
}

/** By fixture, or by what is compared in it. */
export const CLAIMS: Readonly<Record<string, Claim>> = {
  dinov2: { model: "DINOv2 S, B, L, g", output: 3.5e-7, gradients: 1.1e-6 },
  dinov2_patch14: { model: "DINOv2 S, B, L, g", output: 6.3e-7, gradients: 1.3e-6 },
  dinov2_authors: { model: "DINOv2, authors' code", output: 6.5e-7 },
  dinov2_registers: { model: "DINOv2 with registers, SwiGLU", output: 3e-7, gradients: 1.3e-6 },
  dinov2_authors_registers: { model: "DINOv2 with registers, authors' code", output: 4.2e-7 },
  dinov3: { model: "DINOv3 S to 7B, gated or not", output: 6.4e-7, gradients: 1.5e-6 },
  dinov3_gated: { model: "DINOv3 S to 7B, gated or not", output: 3.3e-7, gradients: 1.8e-6 },
  dinov3_authors: { model: "DINOv3, authors' code", output: 4.2e-7 },
  siglip: { model: "SigLIP, SigLIP 2 (fixed size), vision tower", output: 4.9e-7, gradients: 1.4e-6 },
  clip: { model: "CLIP, vision tower", output: 2.9e-7, gradients: 8.6e-7 },
  siglip_pooled: { model: "SigLIP, SigLIP 2: attention pooling", output: 3.9e-7 },
  clip_pooled: { model: "CLIP, image embedding", output: 5.8e-7 },
  convnextv2_pooled: { model: "ConvNeXt V2, norm of the mean included", output: 4e-7 },
  vit: { model: "ViT", output: 3.1e-7, gradients: 1.2e-6 },
  vit_mae: { model: "MAE", output: 6.4e-7, gradients: 1.5e-6 },
  vit_mae_authors: { model: "MAE", output: 6.4e-7, gradients: 1.5e-6 },
  autoencoder_ldm: { model: "LDM, SD-VAE, VA-VAE autoencoders", output: 3.1e-6, gradients: 1.4e-5 },
  vavae_decoder: { model: "LDM, SD-VAE, VA-VAE autoencoders", output: 1.3e-6, gradients: 4e-6 },
  autoencoder_diffusers: { model: "the same from diffusers", output: 2.9e-6, gradients: 1.1e-5 },
  autoencoder_diffusers_bare: { model: "the same from diffusers", output: 2.6e-6, gradients: 1.4e-5 },
  patchgan: { model: "PatchGAN", output: 9.7e-7, gradients: 1.7e-6 },
  lightningdit: { model: "LightningDiT S to 1p6B", output: 7.7e-7, gradients: 1.3e-6 },
  lightningdit_qknorm: { model: "LightningDiT S to 1p6B", output: 6.4e-7, gradients: 2.6e-6 },
  dit_sit: { model: "SiT, REPA", output: 9.1e-7, gradients: 6.8e-6 },
  dit_scales: { model: "LightningDiT S to 1p6B", output: 9.7e-7, gradients: 2.9e-6 },
  dit_inner: { model: "Internal Guidance", output: 6.5e-7, gradients: 1.9e-6 },
  dit_patches: { model: "LightningDiT S to 1p6B", output: 5.7e-7, gradients: 3.1e-6 },
  dit_fourier: { model: "RAE's DiT and DiT-DH", output: 9.2e-7, gradients: 4.2e-6 },
  dit_wide: { model: "RAE's DiT and DiT-DH", output: 2.6e-6, gradients: 4.7e-5 },
  dit_wide_plain: { model: "RAE's DiT and DiT-DH", output: 8.5e-7, gradients: 5e-6 },
  lpips: { model: "LPIPS-VGG", output: 1.8e-7, gradients: 1.2e-5 },
  inception: { model: "Inception-v3 of FID", output: 1.8e-6 },
};

/** Asserts that errors are at most three times the claimed ones. */
export function assertClaim(name: string, errors: { output: number; gradients?: number }): void {
  const claim = CLAIMS[name];
  for (const [what, error] of Object.entries(errors)) {
    const claimed = claim?.[what as keyof typeof errors];
    assert(
      claimed !== undefined && error <= 3 * claimed,
      `${what} of ${name}: the error is ${error}, claimed is ${claimed}`,
    );
  }
}

if (import.meta.main) {
  const rows = new Map<string, { output: number; gradients: number }>();
  for (const { model, output, gradients = 0 } of Object.values(CLAIMS)) {
    const row = rows.get(model) ?? { output: 0, gradients: 0 };
    rows.set(model, { output: Math.max(row.output, output), gradients: Math.max(row.gradients, gradients) });
  }
  console.log("| model | output | gradients |\n| --- | --- | --- |");
  for (const [model, { output, gradients }] of rows) {
    console.log(`| ${model} | ${output.toExponential(1)} | ${gradients ? gradients.toExponential(1) : ""} |`);
  }
}
