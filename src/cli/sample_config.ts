// The options of the commands that make pictures with a diffusion model; see config.ts.

import { z } from "zod";
import { count } from "../bounds.ts";
import { GROUPS } from "./about.ts";
import { flag, general, range, sampling, text, tokenizer } from "./options.ts";
import { emaWidth } from "./optimizer_options.ts";

const { input, output, sample } = GROUPS;
const NEW = { value: "DIR", otherwise: "a new one under ./runs" };
const advanced = true;

/** What generates images: a diffusion model, with the tokenizer of its latents. */
export const generator = {
  model: input(text(), "Diffusion model: run, or checkpoint of LightningDiT", {
    value: "RUN",
    otherwise: "the newest run with one",
  }),
  tokenizer: input(text(), "Tokenizer, as in reconstruct", {
    value: "RUN",
    otherwise: "the one that the model was trained on",
  }),
  latents: input(text(), "Folder with the statistics of the training latents", {
    value: "DIR",
    otherwise: "the model's, else the tokenizer's",
    advanced,
  }),
  ema: emaWidth,
};

export const sampleConfig = z.strictObject({
  ...generator,
  num: output(count("images").default(100), "Number of images"),
  seeds: output(
    range(),
    "Make images A to B only, such as 1000-1999 (each has noise of its own), instead of --num",
    {
      value: "A-B",
      otherwise: "0 to --num - 1",
    },
  ),
  classes: output(z.array(z.string()).min(1).default(["all"]), "Class numbers or names, or all", {
    value: "CLASS,...",
  }),
  labels: output(
    z.enum(["equal", "random"]).default("equal"),
    "Class of each image: equal (all of --classes equally often) or random",
  ),
  out: output(text(), "Folder for the images", NEW),
  folders: output(flag(), "Write one folder per class"),
  npz: output(flag(), "Also write samples.npz (arr_0 images, arr_1 labels)"),
  saveLatents: output(
    flag(),
    "Also write the latents, which `tok decode` and `tok train-dit --latents` read",
  ),
  trajectory: output(
    flag(),
    "Also write trajectory.png: the predicted clean image at up to 8 steps, for the first 8 images",
  ),
  interpolate: output(
    range(),
    "Write interpolation.png instead of images: from image A to B, in noise and class; A-A: fixed noise, from the first to the " +
      "last of --classes",
    { value: "A-B", otherwise: "none" },
  ),
  frames: output(count("batch").min(2).default(8), "Number of pictures of --interpolate, both ends included"),
  noise: input(
    text(),
    'Initial noise: .safetensors file with "noise" [N,C,H,W], row i for image i, as `tok edit` writes it',
    {
      value: "FILE",
      otherwise: "a function of --seed and the image's number",
      advanced,
    },
  ),
  ...sampling,
  batchSize: sample(count("batch").default(50), "Images at a time; does not change them"),
  ...general,
});
export type SampleConfig = z.infer<typeof sampleConfig>;

export const decodeConfig = z.strictObject({
  latents: input(
    text(),
    'Latents: folder from `tok encode` or of LightningDiT\'s tools, or a .safetensors file with "latents" [N,C,H,W]',
    { value: "DIR|FILE", otherwise: "the newest ones of the tokenizer under ./runs" },
  ),
  tokenizer,
  out: output(text(), "Folder for the images", NEW),
  npz: output(flag(), "Also write samples.npz (arr_0 images, arr_1 labels)"),
  batchSize: sample(count("batch").default(50), "Images at a time; does not change them"),
  ...general,
});

export const editConfig = z.strictObject({
  ...generator,
  image: input(text(), "Image: PNG, JPEG or WebP", {
    value: "FILE",
  }),
  mask: input(
    text(),
    "Inpainting mask, an image of the size of --image: white is regenerated, black is kept",
    {
      value: "FILE",
      otherwise: "none: invert and regenerate",
    },
  ),
  class: input(text(), "Class that the image shows, used when it is inverted to noise", {
    value: "CLASS",
    otherwise: "none",
  }),
  to: input(text(), "Class of the result", { value: "CLASS", otherwise: "as --class" }),
  out: output(text(), "Folder for edited.png, grid.png and the noise", NEW),
  strength: sample(
    z.number().gt(0).max(1).default(1),
    "How far to go back to noise, 0 to 1; lower keeps more of the image",
  ),
  cfg: sample(z.number().optional(), "Weight of classifier-free guidance; 1: no guidance", {
    value: "W",
    otherwise: "4 towards another class, else 1",
  }),
  steps: sample(count().default(50), "Integration steps in each direction"),
  method: sample(z.enum(["euler", "heun"]).default("heun"), "Integration method"),
  shift: sample(
    z.number().positive().default(1),
    "Time shift of the grid; below 1: more steps near the noise",
    { value: "S", advanced },
  ),
  ...general,
});
export type EditConfig = z.infer<typeof editConfig>;
