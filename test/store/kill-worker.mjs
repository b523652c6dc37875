// A process that pulls, makes, copies and removes packages without end, in a random order: kill.test.ts kills it.
const [, , home, work, registry, seed] = process.argv;
const { Store } = await import("../../dist/store/store.js");
const { createPackage } = await import("../../dist/store/create.js");
// The test is gone, and with it whoever would end this.
process.stdin.on("close", () => process.exit()).resume();
const store = new Store(home);
let state = Number(seed);
const random = (below) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state % below;
};
const names = ["a", "b", "c", `${registry}/me/one`, `${registry}/me/two`];
const name = () => names[random(names.length)];
const actions = [
  () => store.pull(names[3 + random(2)], { retries: 0 }),
  () => createPackage(store, name(), { from: ["./tiny.gguf"], folder: work, system: `s${random(9)}` }),
  () => createPackage(store, name(), { from: ["./other.gguf"], folder: work, parameters: { seed: random(9) } }),
  () => store.copy(name(), name()),
  () => store.remove(name()),
  () => store.remove(name()),
];
const act = () => actions[random(actions.length)]().catch(() => {});
await act();
process.stdout.write("ready\n");
for (;;) await act();
