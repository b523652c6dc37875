// Owns: the names of a split GGUF's files: PREFIX-00002-of-00005.gguf is the second of five.

export interface SplitName {
  readonly prefix: string;
  /** From 1. */
  readonly part: number;
  readonly count: number;
}

export function splitName(fileName: string): SplitName | undefined {
  const match = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/s.exec(fileName);
  return match === null ? undefined : { prefix: match[1], part: Number(match[2]), count: Number(match[3]) };
}

export function sameSplit(name: SplitName, part: number): string {
  const digits = (value: number) => String(value).padStart(5, "0");
  return `${name.prefix}-${digits(part)}-of-${digits(name.count)}.gguf`;
}

/** What the model is called after its file. */
export function ggufLabel(fileName: string): string {
  return splitName(fileName)?.prefix ?? fileName.replace(/\.gguf$/, "");
}
