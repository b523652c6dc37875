// Owns: the list of families; importing this file declares every op.
export * from "./attention.js";
export * from "./collective.js";
export * from "./elementwise.js";
export * from "./embed.js";
export * from "./head.js";
export * from "./linear.js";
export * from "./moe.js";
export * from "./norm.js";
export * from "./recurrent.js";
export * from "./rope.js";
