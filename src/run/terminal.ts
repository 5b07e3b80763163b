// The progress line of a terminal, fitted to its width: a line that wraps cannot be erased and fills the screen.

/** Maximum and minimum columns of the bar. */
const MAX_BAR = 24, MIN_BAR = 6;

/** Fits a progress line into `width` columns by removing the note, the bar, the rate, and the end of the label, in this order. */
export function fitted(
  { label, counts, speed, left, note }: Record<"label" | "counts" | "speed" | "left" | "note", string>,
  width: number,
): { text: string; bar: number } {
  const join = (...parts: string[]) => parts.filter(Boolean).join("  ");
  const choices = [
    join(label, counts, speed, left, note),
    join(label, counts, speed, left),
    join(label, counts, left),
  ];
  for (const text of choices) {
    const room = width - columnsOf(text) - 1;
    if (room >= MIN_BAR) return { text, bar: Math.min(MAX_BAR, room) };
  }
  const text = choices.slice(1).find((text) => columnsOf(text) <= width);
  if (text !== undefined) return { text, bar: 0 };
  const rest = join(counts, left), room = width - columnsOf(rest) - 2;
  return { text: clipped(room >= 4 ? join(clipped(label, room), rest) : counts, width), bar: 0 };
}

/** Truncates a text to a number of columns, with an ellipsis. */
function clipped(text: string, width: number): string {
  if (columnsOf(text) <= width) return text;
  let out = "";
  for (const c of text) {
    if (columnsOf(out + c) > width - 1) break;
    out += c;
  }
  return `${out}…`;
}

/** Columns of a text on a terminal: combining marks take none, East Asian characters and emoji two. */
export function columnsOf(text: string): number {
  let columns = 0;
  for (const c of text) {
    if (/\p{M}|\p{Cf}/u.test(c)) continue;
    columns +=
      /\p{Script=Han}|\p{Script=Hangul}|\p{Script=Hiragana}|\p{Script=Katakana}|\p{Emoji_Presentation}|[\u3000-\u303f\uff00-\uff60]/u
          .test(c)
        ? 2
        : 1;
  }
  return columns;
}
