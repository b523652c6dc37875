// Owns: Ollama's routes that change the store: pull, push, create, copy, delete, and uploaded blobs. A server that was
// started for certain models has no store to change.
import { createHash, randomUUID } from "node:crypto";
import { createWriteStream, existsSync, mkdirSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import { type Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { FastifyReply, FastifyRequest } from "fastify";
import { UserError } from "../../base/errors.js";
import { adopt, blobPath, partialPath } from "../../store/blobs.js";
import { createPackage } from "../../store/create.js";
import { parametersOf } from "../../store/parameters.js";
import { pushPackage } from "../../store/push.js";
import { type Progress, type Store, steps } from "../../store/store.js";
import { clientSignal, EventStream, jsonLines, type StreamTimes } from "../stream.js";
import type { CreateRequest } from "./schema.js";

export function needStore(store: Store | null): Store {
  if (store !== null) return store;
  throw new UserError(
    "This server was started for certain models and changes none; start it without a MODEL to manage the store.",
    { status: 403, code: "fixed_models" },
  );
}

/** Progress as lines, or its last object alone. */
export async function respondProgress(
  request: FastifyRequest,
  reply: FastifyReply,
  times: StreamTimes,
  asStream: boolean,
  progress: (signal: AbortSignal) => AsyncIterable<Progress>,
): Promise<void> {
  const steps = progress(clientSignal(request, reply));
  if (!asStream) {
    for await (const _ of steps);
    reply.send({ status: "success" });
    return;
  }
  const stream = new EventStream(request, reply, times, jsonLines);
  try {
    for await (const step of steps) await stream.send(step);
    await stream.done();
  } catch (error) {
    await stream.fail(error);
  }
}

export function pull(store: Store, name: string, insecure: boolean, signal: AbortSignal): AsyncIterable<Progress> {
  return steps("pulling", (report, both) => store.pull(name, { report, signal: both, insecure }), signal);
}

export function push(store: Store, name: string, insecure: boolean, signal: AbortSignal): AsyncIterable<Progress> {
  return steps("pushing", (report, both) => pushPackage(store, name, { report, signal: both, insecure }), signal);
}

/** Throws UserError for parameters that are none; everything else fails in the stream. */
export function create(store: Store, name: string, body: CreateRequest, signal: AbortSignal): AsyncIterable<Progress> {
  const { from, files, adapters, draft_files, template, system, license, parameters, messages } = body;
  const quantize = body.quantize || body.quantization;
  const recipe = {
    ...(from === undefined ? {} : { from: [from] }),
    ...(files === undefined ? {} : { files }),
    ...(adapters === undefined ? {} : { adapterFiles: adapters }),
    ...(draft_files === undefined ? {} : { draftFiles: draft_files }),
    ...(template === undefined ? {} : { template }),
    ...(system === undefined ? {} : { system }),
    ...(license === undefined ? {} : { license: [license].flat() }),
    ...(parameters === undefined ? {} : { parameters: parametersOf(parameters) }),
    ...(messages === undefined ? {} : { messages: messages.map(({ role, content = "" }) => ({ role, content })) }),
    ...(quantize ? { quantize } : {}),
    ...(body.draft_quantize ? { draftQuantize: body.draft_quantize } : {}),
    renderer: body.renderer,
    parser: body.parser,
    requires: body.requires,
  };
  return steps(
    "pulling",
    async (report, both) => {
      const { quantizeModel } = await import("../../host/convert.js");
      return createPackage(store, name, recipe, { report, signal: both, quantizer: quantizeModel });
    },
    signal,
  );
}

const digestPattern = /^sha256[:-]([0-9a-f]{64})$/;

/** The hexadecimal part; throws UserError where it is no digest. */
export function sha256Of(digest: string): string {
  const hex = digestPattern.exec(digest)?.[1];
  if (hex !== undefined) return hex;
  throw new UserError(`${JSON.stringify(digest)} is no digest: write sha256: and 64 hexadecimal digits.`, {
    code: "bad_digest",
    param: "digest",
  });
}

export const hasUpload = (store: Store, digest: string) => existsSync(blobPath(store.folder, sha256Of(digest)));

/** The content arrives under its digest, whole or not at all. */
export async function upload(store: Store, digest: string, content: Readable): Promise<void> {
  const hex = sha256Of(digest);
  const path = partialPath(store.folder, `${hex}.${randomUUID()}`);
  mkdirSync(dirname(path), { recursive: true });
  try {
    const hash = createHash("sha256");
    const tee = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        hash.update(chunk);
        done(null, chunk);
      },
    });
    await pipeline(content, tee, createWriteStream(path));
    const found = hash.digest("hex");
    if (found !== hex) {
      throw new UserError(`The content's digest is sha256:${found}, not sha256:${hex}.`, { code: "digest_mismatch" });
    }
    await adopt(store.folder, path, digest, { kind: "sha256", hex });
  } finally {
    rmSync(path, { force: true });
  }
}
