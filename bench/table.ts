/**
 * Tables of text.
 *
 * @module
 */

/** Aligned columns, the first to the left and the others to the right. */
export function formatTable(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = [head, ...rows.map((row) => row.map(String))];
  const widths = head.map((_, column) => Math.max(...cells.map((row) => (row[column] ?? "").length)));
  const pad = (cell: string, column: number): string =>
    column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!);
  return cells.map((row) => row.map(pad).join("  ").trimEnd()).join("\n");
}

/** A number with three digits that count, and commas from 1,000 on; a whole one as it is. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  return value.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : 3);
}
