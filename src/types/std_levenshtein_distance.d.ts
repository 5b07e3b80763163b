// Types of @std/text/levenshtein-distance; the npm edition has none.

export function levenshteinDistance(a: string, b: string): number;
