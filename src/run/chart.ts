// Line charts as SVG, for pages and for files: curves of a training, and scores over a sampling option. Colors are custom
// properties of the page; a file defines its own, for light and dark.

/** A point of a series. */
export type Point = readonly [x: number, y: number, series: string];

export interface ChartOptions {
  /** Name of the x axis, behind its largest value. */
  x: string;
  /** Series in the order of their colors; a point whose series is "" belongs to each. */
  series: readonly string[];
  /** Whether a dashed line joins the points of all series, as long as they are few. */
  course?: boolean;
  /** Whether the x axis has a tick at each value that has room, and the series are named below it. */
  legend?: boolean;
}

export const escape = (text: unknown): string =>
  String(text).replace(
    /[&<>"]/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c] as string,
  );

/** Number of points up to which each of them is marked. */
const MAX_MARKED = 30;
const W = 310, H = 170, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22, ROW = 15;
/** Smallest distance of the centers of two tick labels. */
const TICK = 28;
/** Light and dark color of each series; further ones repeat them with dashes. */
const COLORS = {
  a: ["#0b6bcb", "#58a6ff"],
  b: ["#c2410c", "#ff9b5e"],
  c: ["#15803d", "#4ade80"],
  d: ["#7e22ce", "#c084fc"],
  e: ["#be185d", "#f472b6"],
  f: ["#57534e", "#d6d3d1"],
};
const NAMES = Object.keys(COLORS), DASHES = ["", "6 3", "2 2"];
/** Definitions of the colors for a page. */
export const COLOR_STYLE = Object.entries(COLORS).map(([name, [light, dark]]) =>
  `--${name}: light-dark(${light}, ${dark});`
).join(" ");
/** Definitions of the colors for a file, which older viewers understand, too. */
const FILE_STYLE = (["light", "dark"] as const).map((mode, i) => {
  const all = { ...COLORS, soft: ["#60686f", "#9aa3ab"], line: ["#dfe3e6", "#343a40"] };
  const text = `:root { ${Object.entries(all).map(([name, pair]) => `--${name}: ${pair[i]};`).join(" ")} }`;
  return mode === "dark" ? `@media (prefers-color-scheme: dark) { ${text} }` : text;
}).join("\n");

interface Plot {
  title: string;
  height: number;
  /** SVG elements in W x height. */
  body: string;
}

/** The plot of a chart. Undefined for fewer than two points and for a metric that was never used. */
function plot(
  name: string,
  points: readonly Point[],
  { x: xName, series, course = false, legend = false }: ChartOptions,
): Plot | undefined {
  const good = points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  if (good.length < 2 || good.every(([, y]) => y === 0)) return undefined;
  const x = axis(good.map(([x]) => x), LEFT, W - RIGHT, legend ? 8 : Infinity);
  const y = axis(good.map(([, y]) => y), H - BOTTOM, TOP, legend ? 2.5 : 10);
  const at = ([a, b]: Point) => `${x.place(a)} ${y.place(b)}`;
  const path = (own: readonly Point[]) => own.map((point, k) => `${k ? "L" : "M"}${at(point)}`).join("");
  const lines = (series.length ? series : [""]).map((one, i) => {
    const own = good.filter(([, , s]) => s === one || one === ""), { color, dash } = styleOf(i);
    const title = `<title>${escape(one)}</title>`;
    const curve = `<path d="${
      path(own)
    }" fill="none" stroke="${color}" stroke-width="1.7"${dash}>${title}</path>`;
    if (good.length > MAX_MARKED && !legend) return curve;
    return curve +
      own.map(([a, b]) =>
        `<circle cx="${x.place(a)}" cy="${y.place(b)}" r="2.6" fill="${color}">${title}</circle>`
      ).join("");
  });
  if (course && good.length <= MAX_MARKED) {
    lines.unshift(`<path d="${path(good)}" fill="none" stroke="var(--soft)" stroke-dasharray="3 3"/>`);
  }
  const horizontal = [0, 1, 2, 3].map((i) => y.at(i / 3)).map((value) =>
    `<line x1="${LEFT}" x2="${W - RIGHT}" y1="${y.place(value)}" y2="${
      y.place(value)
    }" stroke="var(--line)"/>` +
    `<text x="${LEFT - 5}" y="${(Number(y.place(value)) + 4).toFixed(1)}" text-anchor="end">${
      Number(value.toPrecision(3))
    }</text>`
  );
  const values = [...new Set(good.map(([a]) => a))].sort((a, b) => a - b);
  const between: number[] = [];
  for (const value of legend ? values.slice(1, -1) : []) {
    const before = between.length ? Number(x.place(between.at(-1) as number)) : LEFT + TICK / 2;
    const place = Number(x.place(value));
    if (place - before >= TICK && W - RIGHT - TICK / 2 - place >= TICK) between.push(value);
  }
  const vertical = [
    `<text x="${LEFT}" y="${H - 6}">${values[0]}</text>`,
    ...between.map((value) =>
      `<text x="${x.place(value)}" y="${H - 6}" text-anchor="middle">${value}</text>`
    ),
    `<text x="${W - RIGHT}" y="${H - 6}" text-anchor="end">${values.at(-1)}${
      legend ? "" : ` ${xName}`
    }</text>`,
  ];
  const names = legend && series.some(Boolean) ? [...series] : [];
  const keys = names.map((one, i) => {
    const { color, dash } = styleOf(i), at = H + 12 + ROW * (i + 1);
    return `<path d="M${LEFT} ${at - 4}h22" stroke="${color}" stroke-width="1.7"${dash}/>` +
      `<text x="${LEFT + 28}" y="${at}">${escape(one)}</text>`;
  });
  const axisName = legend
    ? [`<text x="${(LEFT + W - RIGHT) / 2}" y="${H + 8}" text-anchor="middle">${escape(xName)}</text>`]
    : [];
  return {
    title: `${name.replaceAll("_", " ")}${y.log ? " (logarithmic)" : ""}`,
    height: legend ? H + 16 + ROW * names.length : H,
    body: [...horizontal, ...vertical, ...axisName, ...lines, ...keys].join("\n"),
  };
}

/** A chart for a page; empty where there is nothing to draw. */
export function chart(name: string, points: readonly Point[], options: ChartOptions): string {
  const drawn = plot(name, points, options);
  if (!drawn) return "";
  return `<figure><figcaption>${escape(drawn.title)}</figcaption><svg viewBox="0 0 ${W} ${drawn.height}" ` +
    `width="100%" role="img">\n${drawn.body}</svg></figure>`;
}

const CAPTION = 26, GAP = 14;

/** A chart and where its points come from. */
export interface Chart {
  name: string;
  points: readonly Point[];
  options: ChartOptions;
}

/** Rows of charts in one SVG file. */
export function chartFile(rows: readonly (readonly Chart[])[]): string {
  let height = 0, width = 0;
  const panels = rows.flatMap((charts) => {
    const plots = charts.flatMap(({ name, points, options }) => plot(name, points, options) ?? []),
      top = height;
    height += CAPTION + GAP + Math.max(0, ...plots.map((p) => p.height));
    width = Math.max(width, plots.length * (W + GAP));
    return plots.map(({ title, body }, i) =>
      `<g transform="translate(${i * (W + GAP)} ${top + CAPTION})">` +
      `<text class="title" x="${LEFT}" y="-10">${escape(title)}</text>\n${body}</g>`
    );
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" role="img" ` +
    `font-family="system-ui, sans-serif">
<style>
${FILE_STYLE}
text { fill: var(--soft); font-size: 11px } .title { font-size: 13px; font-weight: 600 }
</style>
${panels.join("\n")}
</svg>
`;
}

function styleOf(series: number): { color: string; dash: string } {
  const dash = DASHES[Math.floor(series / NAMES.length) % DASHES.length];
  return {
    color: `var(--${NAMES[series % NAMES.length]})`,
    dash: dash ? ` stroke-dasharray="${dash}"` : "",
  };
}

/** A scale from `start` to `end`; logarithmic for positive values that differ by more than `ratio`. */
function axis(values: readonly number[], start: number, end: number, ratio: number) {
  const log = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > ratio;
  const scale = (v: number) => log ? Math.log10(v) : v;
  const low = Math.min(...values.map(scale)), span = Math.max(...values.map(scale)) - low || 1;
  return {
    log,
    place: (v: number) => (start + (end - start) * (scale(v) - low) / span).toFixed(1),
    /** The value at a fraction of the axis. */
    at: (fraction: number) => log ? 10 ** (low + span * fraction) : low + span * fraction,
  };
}
