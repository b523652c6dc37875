// Owns: what this machine is known to do, kept from one command to the next: its measured limits, and for each model the
// speeds that its limits allow, those that were foretold and those that bench measured. What models have reached of their
// limits is how the next one is foretold.
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Roofs, Speeds } from "../host/forecast.js";
import { dataFolder } from "../store/folder.js";

export interface ModelSpeeds {
  /** No faster than this. */
  readonly limits: Speeds;
  readonly predicted: Speeds;
  readonly measured?: Speeds;
}

interface Book {
  roofs: Record<string, Roofs>;
  models: Record<string, ModelSpeeds>;
}

/** Of its limits, what a model is expected to reach where none has been measured here yet. */
const usualShare: Speeds = { prompt: 0.45, generation: 0.7 };

const keyOf = (machine: string, model: string) => `${machine}: ${model}`;

export class SpeedBook {
  private readonly path: string;
  private readonly book: Book;

  constructor(private readonly folder = dataFolder()) {
    this.path = join(folder, "speeds.json");
    this.book = { roofs: {}, models: {}, ...read(this.path) };
  }

  /** The most that was ever measured on the machine (device and threads): other work beside makes it less, nothing more. */
  roofs(machine: string, measured: Roofs): Roofs {
    const known = this.book.roofs[machine] ?? measured;
    const best = (limit: keyof Roofs) => Math.max(known[limit], measured[limit]);
    this.book.roofs[machine] = { readBytes: best("readBytes"), int8: best("int8"), f32: best("f32") };
    this.write();
    return this.book.roofs[machine];
  }

  of(machine: string, model: string): ModelSpeeds | undefined {
    return this.book.models[keyOf(machine, model)];
  }

  /** What was foretold of a model before it was measured stays. */
  predict(machine: string, model: string, limits: Speeds): ModelSpeeds {
    const known = this.of(machine, model);
    if (known?.measured !== undefined) return this.keep(machine, model, { ...known, limits });
    const share = this.share(machine);
    const predicted = { prompt: limits.prompt * share.prompt, generation: limits.generation * share.generation };
    return this.keep(machine, model, { limits, predicted });
  }

  /** undefined: nothing was foretold of the model. */
  measured(machine: string, model: string, measured: Speeds): ModelSpeeds | undefined {
    const known = this.of(machine, model);
    return known && this.keep(machine, model, { ...known, measured });
  }

  private keep(machine: string, model: string, speeds: ModelSpeeds): ModelSpeeds {
    this.book.models[keyOf(machine, model)] = speeds;
    this.write();
    return speeds;
  }

  /** The median of what models have reached of their limits on this machine. */
  share(machine: string): Speeds {
    const reached = Object.entries(this.book.models).flatMap(([key, { limits, measured }]) =>
      measured === undefined || !key.startsWith(keyOf(machine, ""))
        ? []
        : [{ prompt: measured.prompt / limits.prompt, generation: measured.generation / limits.generation }],
    );
    if (reached.length === 0) return usualShare;
    const median = (kind: keyof Speeds) =>
      reached.map((one) => one[kind]).sort((a, b) => a - b)[Math.floor(reached.length / 2)];
    return { prompt: median("prompt"), generation: median("generation") };
  }

  /** Of two commands at once, the later one's writing stays: what is lost is measured again. */
  private write(): void {
    mkdirSync(this.folder, { recursive: true });
    const temporary = `${this.path}.${process.pid}`;
    writeFileSync(temporary, JSON.stringify(this.book, null, 1));
    renameSync(temporary, this.path);
  }
}

function read(path: string): Partial<Book> {
  try {
    return JSON.parse(readFileSync(path, "utf8")) as Partial<Book>;
  } catch {
    return {};
  }
}

/** What `millrace plan` said of a model that now runs. */
export function foretold({
  name,
  device,
  threads,
}: {
  name: string;
  device: string;
  threads: number;
}): Speeds | undefined {
  return new SpeedBook().of(machineName(device, threads), name)?.predicted;
}

export const machineName = (device: string, threads: number) => `${device}, ${threads} threads`;

/** "127.0 tokens/s, 103 % of what was foretold" */
export function besides(measured: number, foretold: number): string {
  return `${measured.toFixed(1)} tokens/s, ${((100 * measured) / foretold).toFixed(0)} % of what was foretold`;
}
