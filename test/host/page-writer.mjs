// A process that writes pages over and over, with a quota that makes it sweep: its parent kills it.
import { PageTiers } from "../../dist/host/page-tiers.js";

const [folder, model, seed] = process.argv.slice(2);
const about = { model: "m", device: "cpu, here", kvDtype: "f16", pageTokens: 16, group: 0 };
const key = (n) => String.fromCharCode(0, ...Array.from({ length: 16 }, (_, i) => n * 16 + i));
const bytes = (n) => Uint8Array.from({ length: 1000 }, (_, i) => (n * 31 + i * 7) & 255);
const options = { folder, files: [model], kind: "k", about, memoryBytes: 0, diskBytes: 30_000 };
for (let round = Number(seed); ; round++) {
  const tiers = new PageTiers(options, () => {});
  await tiers.open();
  for (let i = 0; i < 40; i++) tiers.put(key((i * 7 + round * 13) % 40), bytes((i * 7 + round * 13) % 40));
  while (tiers.busy) await tiers.writeNext();
  if (round < 2) process.send("writing");
}
