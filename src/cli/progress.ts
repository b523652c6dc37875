// Owns: what a person sees of a pull, always on standard error: a bar in a terminal, a line now and then elsewhere.
import { env } from "../base/env.js";
import type { PullReport } from "../store/store.js";

const say = (text: string) => process.stderr.write(`${text}\n`);

/** A line at the start of a file's download, each tenth of it, and nothing for small files. */
function plainLines(): PullReport & { stop(): void } {
  const told = new Map<string, number>();
  return {
    note: say,
    progress(file, done, total) {
      if (total === undefined || total < 10e6) return;
      const tenth = Math.floor((10 * done) / total);
      if (tenth <= (told.get(file) ?? 0)) return;
      told.set(file, tenth);
      say(`  ${file}: ${tenth * 10} % of ${(total / 1e6).toFixed(0)} MB`);
    },
    stop() {},
  };
}

type Library = typeof import("cli-progress");
type Bar = import("cli-progress").SingleBar;

/** One bar at a time. cli-progress is loaded when the first byte comes: most commands download nothing. */
class Bars implements PullReport {
  private library: Promise<{ readonly default: Library }> | undefined;
  private bar: Bar | undefined;
  private file = "";
  private total = 0;

  readonly note = (text: string): void => {
    this.stop();
    say(text);
  };

  readonly progress = (file: string, done: number, total: number | undefined): void => {
    if (total === undefined) return;
    if (this.file !== file) {
      // Of several at once the largest is shown.
      if (this.file !== "" && total <= this.total) return;
      this.stop();
      this.file = file;
      this.total = total;
      this.library ??= import("cli-progress");
      void this.library.then(({ default: library }) => this.start(library, file, total));
    }
    this.bar?.update(done, { megabytes: `${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)}` });
  };

  readonly stop = (): void => {
    this.bar?.stop();
    this.bar = undefined;
    this.file = "";
  };

  private start(library: Library, file: string, total: number): void {
    if (this.file !== file) return;
    const format = "  {bar} {percentage} %  {megabytes} MB  {eta_formatted} left";
    this.bar = new library.SingleBar({ format, hideCursor: true, etaBuffer: 200 }, library.Presets.shades_classic);
    this.bar.start(total, 0, { megabytes: "" });
  }
}

/** stop() must be called before anything else is written. */
export function pullReport(): PullReport & { stop(): void } {
  return process.stderr.isTTY && env("CI") === undefined ? new Bars() : plainLines();
}
