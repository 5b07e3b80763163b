// Vocabulary: private terms for things that have a standard name are not used in identifiers, comments, messages, help,
// READMEs or tests.

import { assertEquals } from "@std/assert";
import { fromFileUrl, join } from "@std/path";

const TOP = fromFileUrl(new URL("..", import.meta.url));

/** Private words, and the terms to use instead. */
const PRIVATE: [RegExp, string][] = [
  [/\b(in|as|of|are|stores?|stored) halves\b|[a-z]Halves|Halves[A-Z]/, "fp16, half precision"],
  [/(?<!\b(dot|outer|inner|and) )\b[Pp]roducts\b|(?<!Dot)Products?\b/, "matmul, GEMM, dot products"],
  [/\bwalks?\b|\bstraight\b|isStraight/, "strided view, contiguous"],
  [/\bcarried\b|\bcarries along\b/, "fused, passed, kept"],
  [/\bmerg(ed?|ing) (into|launches)\b|\blaunch(es)? (is|are) merged\b/, "fuse, fusion"],
  [/(?<!SIMD )\blanes?\b/, "thread, invocation"],
  [/\bstrands?\b|\bslabs?\b/, "column of a thread, K-tile"],
  [/\byardsticks?\b|\bceilings?\b/i, "baseline, peak"],
  [/\bcritics?\b(?!\.?")|[a-z]Critic/, "discriminator"],
  [/\bmeters?\b|METERS/, "running metrics"],
  [/\b(MOST|LEAST|FEW|LONGEST|FEWEST)(_[A-Z]+)*\b/, "MAX_, MIN_"],
  [
    /\bof(Critic|Best|Lane|Query|Fake|Real|Dy|X|K|Q|Row|Weight|Gradients|Latents|Lpips|Squares)\b|\bof_[a-z]+\b/,
    "a noun with its role",
  ],
  [/\bso many\b/, "the number"],
  [/\bbeside\b/, "next to, with"],
  [/\badds? up\b/, "accumulates, reduces"],
  [
    /\bInceptionEye\b|\bSeen\b|\bQuestion\b|\bJudge\b/,
    "InceptionFeatures, FeatureStats, FeatureKind, ToyClassifier",
  ],
];

function* files(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(join(TOP, folder))) {
    const path = join(folder, name);
    if (isDirectory) yield* files(path);
    else if (/\.(ts|wgsl|md|sh)$/.test(name)) yield path;
  }
}

Deno.test("the code, its texts and its tests use the field's terms", () => {
  const found: string[] = [];
  for (
    const path of [
      "main.ts",
      "mod.ts",
      "README.md",
      ...["src", "kernels", "tasks", "tests"].flatMap((f) => [...files(f)]),
    ]
  ) {
    if (path === "tests/words_test.ts") continue; // the list itself
    for (const [i, line] of Deno.readTextFileSync(join(TOP, path)).split("\n").entries()) {
      for (const [word, term] of PRIVATE) {
        const m = word.exec(line);
        if (m) found.push(`${path}:${i + 1}: "${m[0]}": ${term}`);
      }
    }
  }
  assertEquals(found, []);
});
