// The networks of an evaluation of two sets, as --save-stats and --save-features record them, and whether stored features are
// of the same.

import { UsageError } from "../errors.ts";
import { differences, type Provenance } from "../formats/provenance.ts";
import type { Inception } from "../models/inception.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";
import { readsHead } from "./encoder_features.ts";
import type { SetOptions } from "./evaluation_options.ts";
import type { SetFacts } from "./image_set.ts";
import type { Selection } from "./selection.ts";
import type { SixSpaces } from "./six_spaces.ts";

export class SetNetworks {
  constructor(
    private readonly selection: Selection,
    private readonly options: Pick<SetOptions, "inceptionInput" | "imageSize">,
    readonly inception: Inception | undefined,
    readonly encoder: EncoderSource<EncoderConfig> | undefined,
    readonly six: SixSpaces | undefined,
  ) {}

  /** What the scores depend on: the networks of the selected metrics. */
  async all(): Promise<Provenance> {
    const { encoder, inception } = this;
    const head = this.selection.from("encoder").some(({ space }) => readsHead(space)) &&
      await encoder?.headFingerprint();
    return {
      encoder: encoder ? { name: encoder.path, fingerprint: await encoder.fingerprint() } : "none",
      inception: inception?.identity ?? "none",
      ...encoder && head ? { "pooling head": { name: encoder.path, fingerprint: head } } : {},
      ...await this.six?.networks(),
    };
  }

  /** What stored features were computed with. */
  async about(): Promise<Provenance> {
    const networks = Object.entries(await this.all()).filter(([, network]) => network !== "none");
    const { inceptionInput, imageSize } = this.options;
    return {
      ...Object.fromEntries(networks),
      ...this.inception && { "Inception input": inceptionInput },
      "image size": imageSize ?? "as the files",
    };
  }

  /** @throws UsageError for stored features of other networks or settings */
  async refuseOthers({ name, about, spaces }: SetFacts): Promise<void> {
    const different = about ? differences(about, await this.about()) : [];
    for (const space of ["patches", "cls", "dinov2", "dinov2_torch"] as const) {
      const { moments, features } = spaces?.[space] ?? {}, width = moments?.mean.length ?? features?.columns;
      const own = this.encoder?.config.hidden_size;
      if (width !== undefined && own !== undefined && width !== own) {
        different.push(`they have ${width} channels and the encoder has ${own}`);
      }
    }
    if (different.length === 0) return;
    throw new UsageError(
      `Cannot compare with the features in "${name}": ${different.join(", ")}; use what they were computed ` +
        `with, or compute them again`,
    );
  }
}
