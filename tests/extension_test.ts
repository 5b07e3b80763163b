// The table "Adding things" of src/README.md is true: one thing of each kind is added to a scratch copy of the source, only
// in the files that the table names, and fixtures/use_additions.ts.txt uses all of them there, type-checked.

import { assert, assertEquals } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";

const TOP = fromFileUrl(new URL("..", import.meta.url));

/** By file: the text of a new one, or pairs of a text that occurs once and its replacement. */
type Addition = Record<string, string | readonly (readonly [find: string, replace: string])[]>;

const ADDITIONS: Record<string, Addition> = {
  "elementwise op": {
    "src/ops/math.ts": [
      [
        "const FORMULAS = {",
        'const FORMULAS = { cube: { forward: "a * a * a", backward: ["dy * 3.0 * a * a"] },',
      ],
      [
        "export const square =",
        'export const cube = (a: Tensor): Tensor => apply("cube", [a]);\nexport const square =',
      ],
    ],
  },
  "op with a kernel": {
    "kernels/triple.wgsl": `// y = 3 x, x [N].
struct Params { count: u32 }
var<storage> x: array<f32>;
var<storage> y: array<f32>;
@compute @workgroup_size(64)
fn triple(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < params.count) { store_y(id.x, 3.0 * x(id.x)); }
}
`,
    "src/ops/triple.ts": `// Three times a tensor.
import source from "../../kernels/triple.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { differentiable } from "../tensor/autograd.ts";
import { emptyActivation, type Tensor } from "../tensor/tensor.ts";

export function triple(x: Tensor): Tensor {
  const y = emptyActivation(x.shape);
  launch(kernel(source, "triple"), { x, y }, { count: x.size }, fold(Math.ceil(x.size / 64)));
  return differentiable(y, [x], (dy) => [triple(dy)]);
}
`,
  },
  "encoder family": {
    "src/models/vit_config.ts": [["MODEL_TYPES = [", 'MODEL_TYPES = ["toy_vit",']],
    "src/models/vit_families.ts": [[
      "FAMILIES: Readonly<Record<ModelType, Family>> = {",
      "FAMILIES: Readonly<Record<ModelType, Family>> = { toy_vit: { ...dinov2, wrapper: /^toy_vit\\./ },",
    ]],
  },
  "loss term": {
    "src/train/losses.ts": [
      ["/** mean (a - b)^2 */", "export const magnitude = (a: Tensor): Tensor => mean(square(a));\n"],
    ],
    "src/train/alignment_losses.ts": [
      ["klDivergence, l1, l2 }", "klDivergence, l1, l2, magnitude }"],
      [
        "LOSSES = {",
        "LOSSES = { magnitude: { reconstruction: true, weight: (c) => c.wMagnitude, value: ({ y }) => magnitude(y) },",
      ],
    ],
    "src/cli/config.ts": [[
      "  wSemantic: losses(",
      '  wMagnitude: losses(amount().default(0), "Weight of it"),\n  wSemantic: losses(',
    ]],
    "src/cli/grades.ts": [["  wSemantic: [", "  wMagnitude: [],\n  wSemantic: ["]],
  },
  metric: {
    "src/metrics/table.ts": [[
      'pairsOf("psnr", psnr),',
      'pairsOf("psnr", psnr), pairsOf("mae", (a, b) => a.reduce((n, v, i) => n + Math.abs(v - b[i]!), 0) / a.length),',
    ]],
  },
  sampler: {
    "src/sampling/samplers.ts": [
      [
        "/** Euler's method ",
        "const sampleConstant: SamplerStep = ({ velocity, x, t }) => [add(x, velocity(x, t))];\n\n/** Euler's method ",
      ],
      ["euler: { step", "constant: { step: sampleConstant, evaluations: 1 },\n  euler: { step"],
    ],
    "src/cli/options.ts": [['z.enum(["euler", "heun", ', 'z.enum(["constant", "euler", "heun", ']],
  },
  option: {
    "src/cli/config.ts": [[
      "doctorConfig = z.strictObject({",
      'doctorConfig = z.strictObject({ greeting: output(z.string().default("hello"), "First line"),',
    ]],
    "tasks/doctor.ts": [["    log.begin();", "    log.begin();\n    log.line(c.greeting);"]],
  },
  command: {
    "tasks/hello.ts": `// tok hello: says hello.
import { helloConfig } from "../src/cli/config.ts";
import { command } from "./command.ts";

export const hello = command({
  name: "hello",
  purpose: "Say hello",
  schema: helloConfig,
  examples: ["tok hello"],
  run: (c, { log }) => Promise.resolve(log.line(\`hello \${c.who}\`)).then(() => ({ who: c.who })),
});
`,
    "src/cli/config.ts": [[
      "export const doctorConfig",
      'export const helloConfig = z.strictObject({ who: output(z.string().default("you"), "Name"), ...general });\n' +
      "export const doctorConfig",
    ]],
    "tasks/run.ts": [
      [
        'import { inspect } from "./inspect.ts";',
        'import { hello } from "./hello.ts";\nimport { inspect } from "./inspect.ts";',
      ],
      ["  inspect,\n", "  hello,\n  inspect,\n"],
    ],
  },
};

function copy(from: string, to: string): void {
  for (const { name, isDirectory } of Deno.readDirSync(from)) {
    if (isDirectory) {
      Deno.mkdirSync(join(to, name), { recursive: true });
      copy(join(from, name), join(to, name));
    } else Deno.copyFileSync(join(from, name), join(to, name));
  }
}

Deno.test("each kind of addition touches the files that src/README.md names, and no other", async () => {
  const scratch = await Deno.makeTempDir(), at = (path: string) => join(scratch, path);
  try {
    for (const folder of ["src", "kernels", "tasks", "tests/types"]) {
      Deno.mkdirSync(at(folder), { recursive: true });
      copy(join(TOP, folder), at(folder));
    }
    for (const file of ["deno.json", "deno.lock"]) Deno.copyFileSync(join(TOP, file), at(file));
    const readme = Deno.readTextFileSync(join(TOP, "src/README.md"));
    for (const [kind, files] of Object.entries(ADDITIONS)) {
      const row = readme.split("\n").find((line) => line.startsWith(`| ${kind} `)) ?? "";
      for (const [path, change] of Object.entries(files)) {
        const named = path.replace(/^src\//, "").replace(/(triple|hello|doctor)(?=\.)/, "NAME");
        assert(row.includes(named), `src/README.md does not name ${path} for "${kind}"`);
        if (typeof change === "string") {
          Deno.mkdirSync(dirname(at(path)), { recursive: true });
          Deno.writeTextFileSync(at(path), change);
          continue;
        }
        let text = Deno.readTextFileSync(at(path));
        for (const [find, replace] of change) {
          assertEquals(text.split(find).length, 2, `${path}: "${find}" does not occur once`);
          text = text.replace(find, () => replace);
        }
        Deno.writeTextFileSync(at(path), text);
      }
    }
    copy(join(TOP, "src/models/tiny"), (Deno.mkdirSync(at("toy_vit")), at("toy_vit")));
    const config = JSON.parse(Deno.readTextFileSync(at("toy_vit/config.json")));
    Deno.writeTextFileSync(at("toy_vit/config.json"), JSON.stringify({ ...config, model_type: "toy_vit" }));
    Deno.copyFileSync(join(TOP, "tests/fixtures/use_additions.ts.txt"), at("use_additions.ts"));
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--check", "use_additions.ts"],
      cwd: scratch,
      env: { NO_COLOR: "1" },
    }).output();
    const said = new TextDecoder().decode(stdout);
    assert(success && said.includes("every addition works"), said + new TextDecoder().decode(stderr));
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
});
