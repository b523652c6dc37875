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

/** stop() must be called before anything else is written. */
export async function pullReport(): Promise<PullReport & { stop(): void }> {
  if (!process.stderr.isTTY || env("CI") !== undefined) return plainLines();
  const { default: progress } = await import("cli-progress");
  let bar: InstanceType<typeof progress.SingleBar> | null = null;
  let barFile = "";
  const stop = () => {
    bar?.stop();
    bar = null;
    barFile = "";
  };
  return {
    stop,
    note(text) {
      stop();
      say(text);
    },
    progress(file, done, total) {
      if (total === undefined) return;
      if (bar === null || barFile !== file) {
        stop();
        const format = "  {bar} {percentage} %  {megabytes} MB  {eta_formatted} left";
        bar = new progress.SingleBar({ format, hideCursor: true, etaBuffer: 200 }, progress.Presets.shades_classic);
        bar.start(total, done, { megabytes: "" });
        barFile = file;
      }
      bar.update(done, { megabytes: `${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)}` });
    },
  };
}
