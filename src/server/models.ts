// Owns: the models that a server serves: each a session with its queue limit and what clients are told of it.
import { createHash } from "node:crypto";
import { UserError } from "../base/errors.js";
import type { Session } from "../session/session.js";
import type { QueueLimit } from "./limits.js";

export interface ServedModel {
  /** What clients call it. */
  readonly id: string;
  /** Unix seconds: when it was loaded. */
  readonly created: number;
  readonly session: Session;
  readonly queue: QueueLimit;
  /** Changes when the same request may give other tokens: another file, device or version. */
  readonly fingerprint: string;
}

export class ServedModels {
  private readonly models: ReadonlyMap<string, ServedModel>;

  constructor(models: readonly ServedModel[]) {
    this.models = new Map(models.map((model) => [model.id, model]));
    if (this.models.size !== models.length) throw new UserError("Two models were given the same id; ids must differ.");
  }

  get all(): readonly ServedModel[] {
    return [...this.models.values()];
  }

  get(id: string): ServedModel {
    const model = this.models.get(id);
    if (model !== undefined) return model;
    const known = [...this.models.keys()].map((name) => `"${name}"`).join(", ");
    throw new UserError(`There is no model "${id}" here; this server has ${known}.`, {
      status: 404,
      code: "model_not_found",
      param: "model",
    });
  }
}

export function fingerprint(...parts: readonly (string | number)[]): string {
  return `fp_${createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 12)}`;
}
