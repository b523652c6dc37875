// Owns: columns of text and sizes for people.

/** Numbers to the right, the rest to the left, two spaces between. */
export function table(rows: readonly (readonly (string | number)[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, at) => {
      widths[at] = Math.max(widths[at] ?? 0, String(cell).length);
    });
  }
  const line = (row: readonly (string | number)[]) =>
    row.map((cell, at) => (typeof cell === "number" ? String(cell).padStart(widths[at]) : cell.padEnd(widths[at])));
  return rows.map((row) => line(row).join("  ").trimEnd()).join("\n");
}

export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const at = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  return at === 0 ? `${bytes} B` : `${(bytes / 1000 ** at).toFixed(1)} ${units[at]}`;
}

/** A point in time for people: "3 hours ago"; "in 4 minutes" where it is to come. */
export function since(time: string | Date, now = Date.now()): string {
  const seconds = Math.round((now - new Date(time).getTime()) / 1000);
  const units = [
    ["second", 60],
    ["minute", 60],
    ["hour", 24],
    ["day", 30],
    ["month", 12],
    ["year", Number.POSITIVE_INFINITY],
  ] as const;
  let count = Math.abs(seconds);
  for (const [name, size] of units) {
    if (count < size) {
      const text = `${count} ${name}${count === 1 ? "" : "s"}`;
      return seconds >= 0 ? `${text} ago` : `in ${text}`;
    }
    count = Math.floor(count / size);
  }
  return "";
}
