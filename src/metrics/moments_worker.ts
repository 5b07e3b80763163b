// The entry of a thread that accumulates a band of a covariance, see moments.ts. It is started by its path, so a compiled or
// packed program has to bring this file along.

import { Band, type BandMessage, type BandReply } from "./moments.ts";

let band: Band | undefined;

self.onmessage = ({ data }: MessageEvent<BandMessage>) => {
  if (data === "sums") {
    const sums = (band as Band).sums().slice();
    self.postMessage({ sums } satisfies BandReply, { transfer: [sums.buffer] });
  } else if ("rows" in data) {
    band?.add(data.rows);
    self.postMessage("added" satisfies BandReply);
  } else band = new Band(data);
};
