import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    globalSetup: ["scripts/vitest-setup.mjs"],
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
