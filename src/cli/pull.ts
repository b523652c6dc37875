// Owns: `millrace pull MODEL`.
import { Command } from "commander";
import { Store } from "../store/store.js";
import { modelArgument, reported } from "./model.js";

export function command(): Command {
  return new Command("pull")
    .description("Fetch a model into the local store. A download that was cut goes on where it stopped.")
    .argument("<model>", modelArgument)
    .option("--plan", "fetch nothing: say what it will need and do here (millrace plan)")
    .option("--insecure", "a registry may be spoken to without TLS")
    .option("--json", "print {name, path, bytes, files} as JSON")
    .addHelpText(
      "after",
      `
Examples:
  millrace pull smollm2
  millrace pull llama3.2:1b                         a package of Ollama's registry
  millrace pull registry.example.org/team/model     of another one
  millrace pull hf.co/owner/repo:Q4_K_M             the GGUF of that quantisation on the hub
  millrace pull hf:owner/repo                       a repository with safetensors, or with one GGUF
  millrace pull hf:owner/repo/model-Q4_K_M.gguf     one file of it
  HF_TOKEN=… millrace pull hf:owner/gated-repo      a gated model
  HF_ENDPOINT=https://… millrace pull smollm2       from a mirror`,
    )
    .action(async (model: string, { json, insecure, plan }: { json?: boolean; insecure?: boolean; plan?: boolean }) => {
      if (plan) return (await import("./plan.js")).plan(model, { device: "auto", json, insecure });
      const pulled = await reported((options) => new Store().pull(model, { ...options, insecure }));
      const { name, path, bytes, files } = pulled;
      if (json) console.log(JSON.stringify({ name, path, bytes, files }));
      else console.log(`${name} is in ${path} (${(bytes / 1e6).toFixed(1)} MB)`);
    });
}
