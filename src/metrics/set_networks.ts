// The networks of an evaluation of two sets, as --save-stats and --save-features record them, and whether stored features are
// of the same.

import { UsageError } from "../errors.ts";
import { differences, type Identity, type Provenance } from "../formats/provenance.ts";
import type { Inception } from "../models/inception.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";
import { readsHead } from "./encoder_features.ts";
import type { SetOptions } from "./evaluation_options.ts";
import type { SetFacts } from "./image_set.ts";
import type { Selection } from "./selection.ts";
import { recordedAs, SIX_SPACES } from "./six_networks.ts";
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
  /**
   * Compares what both sets say of the networks of FDr6, which need not be given where features are stored.
   * @param say called with what cannot be compared
   * @throws UsageError for features of different networks
   */
  refuseDifferent(real: SetFacts, fake: SetFacts, say: (line: string) => void): void {
    if (this.selection.from("six").length === 0) return;
    const networksOf = ({ about = {} }: SetFacts): Provenance =>
      Object.fromEntries(
        SIX_SPACES.map(recordedAs).flatMap((name) => name in about ? [[name, about[name] as Identity]] : []),
      );
    const [first] = differences(networksOf(real), networksOf(fake));
    if (first !== undefined) {
      throw new UsageError(
        `Cannot compare "${real.name}" with "${fake.name}": they hold features of different networks, ${first}; ` +
          `compute those of one again`,
      );
    }
    for (const set of [real, fake]) {
      const unknown = SIX_SPACES.filter((six) =>
        set.spaces?.[six.space] && !(recordedAs(six) in (set.about ?? {}))
      );
      if (unknown.length === 0) continue;
      const names = unknown.map(({ network }) => network).join(", ");
      say(`note: "${set.name}" does not say of which weights its features are: ${names}`);
    }
  }
}
