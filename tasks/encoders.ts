// The encoder that the options of a command select: a vision transformer to train with, or any network that makes features.

import type { Log } from "../src/run/log.ts";
import { type EncoderOptions, openEncoder, openFeatureEncoder } from "../src/zoo/encoders.ts";

interface Choice extends Pick<EncoderOptions, "interpolateOffset"> {
  encoder?: string | undefined;
  download: boolean;
  dryRun?: boolean;
}

const chosenBy =
  <E>(open: (spec: string | undefined, options: EncoderOptions) => Promise<E>) =>
  async (c: Choice, log: Log): Promise<E> => {
    const { download, interpolateOffset, dryRun: planOnly = false } = c;
    const say = (line: string) => {
      log.begin(); // a download takes a while
      log.line(line);
    };
    return await open(c.encoder, { download, interpolateOffset, planOnly, say });
  };

/** Opens a vision transformer. @throws UsageError as openEncoder() */
export const chosenEncoder = chosenBy(openEncoder);

/** Opens an encoder of any kind. @throws UsageError as openFeatureEncoder() */
export const chosenFeatureEncoder = chosenBy(openFeatureEncoder);

/** Opens the encoders of --encoders. @throws UsageError as openFeatureEncoder() */
export async function chosenEncoders(
  { encoders = [], download }: { encoders?: string[] | undefined; download: boolean },
  log: Log,
) {
  const opened = [];
  for (const encoder of encoders) opened.push(await chosenFeatureEncoder({ encoder, download }, log));
  return opened;
}
