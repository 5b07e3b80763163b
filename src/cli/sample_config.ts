// The options of the commands that make pictures with a diffusion model; see config.ts.

import { z } from "zod";
import { count } from "../bounds.ts";
import { flag, general, GROUPS, range, sampling, text } from "./options.ts";
import { rebuilt } from "./optimizer_options.ts";

const { input, output, sample } = GROUPS;
const NEW = { value: "DIR", otherwise: "a new one under ./runs" };
const advanced = true;

export const sampleConfig = z.strictObject({
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
  ema: rebuilt,
  num: output(count("images").default(100), "Number of images"),
  seeds: output(range(), "Make the images numbered A to B, instead of --num: a part of a larger job", {
    value: "A-B",
    otherwise: "from 0 on",
  }),
  classes: output(z.array(z.string()).min(1).default(["all"]), "Class numbers or names, or all", {
    value: "CLASS,...",
  }),
  labels: output(
    z.enum(["equal", "random"]).default("equal"),
    "Classes of the images: equally many of each, or each at random",
  ),
  out: output(text(), "Folder for the images", NEW),
  folders: output(flag(), "Write one folder per class"),
  npz: output(flag(), "Also write samples.npz (arr_0 images, arr_1 labels)"),
  ...sampling,
  batchSize: sample(count("batch").default(50), "Images at a time; does not change them"),
  ...general,
});
export type SampleConfig = z.infer<typeof sampleConfig>;
